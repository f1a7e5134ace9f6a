"""Personal data masked: e-mail addresses, public IP addresses, phone numbers, payment card numbers.

A mask says what stood there, so that a model learns the place and not the person. Each pattern is linear in the text;
where the character that it hangs on does not occur, the text is not searched.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from lmforge.recipe import PrivateKind

NEVER_MASKED = frozenset(("code", "technical"))  # genres where such strings are examples, versions and constants
MASKS: dict[PrivateKind, str] = {
    "email": "[email]",
    "ip": "[ip address]",
    "phone": "[phone number]",
    "card": "[card number]",
}
# Scripts whose words stand beside a number or an address without a space: they part it as a space does.
_UNSPACED = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
)
_W = rf"[^\W{_UNSPACED}]"  # a letter or digit that belongs to what it stands beside
# letters of any alphabet (RFC 6531), but no address of a repository, git@host:path
_EMAIL = re.compile(
    rf"(?<!{_W})(?<![.+\]-]){_W}(?:{_W}|[.+-]){{0,63}}[@＠](?:{_W}(?:{_W}|-){{0,62}}\.){{1,8}}"
    rf"[^\W\d_{_UNSPACED}]{{2,24}}(?!{_W})(?![@＠-]|:[\w.~-]*/)"
)
# Each begins with the characters that it can begin with and looks back past them: so the search runs from digit to
# digit. None begins right after a "]", and no address with colons ends right before a "[", so that what stands beside a
# mask stays as it was before the mask.
_IP4 = re.compile(rf"[0-9](?<!{_W}.)(?<![.\]-].)[0-9]{{0,2}}\.(?:[0-9]{{1,3}}\.){{2}}[0-9]{{1,3}}(?!{_W})(?!-|\.[0-9])")
_IP6 = re.compile(
    rf"[0-9A-Fa-f:](?<!{_W}.)(?<![:.\]].)(?:(?<=:):|[0-9A-Fa-f]{{0,3}}:)(?:[0-9A-Fa-f]{{0,4}}:){{0,6}}[0-9A-Fa-f]{{0,4}}"
    rf"(?!{_W})(?![:\[])"
)
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_CARD = re.compile(rf"[2-6](?<!{_W}.)(?<![.\]-].)(?:[ -]?[0-9]){{12,18}}(?!{_W})(?!-|\.[0-9])")
# International with +; North American (123) 456-7890, 123-456-7890, 123.456.7890; nothing that is a bare run of digits.
_PHONE = re.compile(
    rf"[+(0-9](?<!{_W}.)(?<![.+\]-].)(?:(?<=\+)[0-9]{{1,3}}(?:[ .-]?\(?[0-9]{{1,4}}+\)?){{2,6}}+"
    r"|(?<=\()[0-9]{3}\) ?[0-9]{3}[.-][0-9]{4}"
    r"|(?<=1)[ .-](?:\([0-9]{3}\) ?|[0-9]{3}[.-])[0-9]{3}[.-][0-9]{4}|(?<=[0-9])[0-9]{2}[.-][0-9]{3}[.-][0-9]{4})"
    rf"(?!{_W})(?!-|\.[0-9])"
)
# What is said before a number of four parts: whose it is, or that it is a version or a section. The nearest word
# counts.
_SAYS = re.compile(
    r"(?i)(?P<address>\b(?:ips?|ipv4|address(?:es)?|adresse[ns]?|hosts?|hostname|servers?|dns|ping|gateway|"
    r"router|client|subnet|"
    r"proxy|login|logged|connect\w*|dirección|direcci[oó]n|indirizzo|endereço|адрес\w*)\b|地址|アドレス|住所|주소)|"
    r"(?P<version>\b(?:v|chrome|firefox|safari|edge|opera|windows|android|ios|macos|java|nginx|openssl|ver|"
    r"versions?|versión|versão|versione|versie|wersja|verze|sürüm|releases?|builds?|"
    r"upgrad\w+|updat\w+|"
    r"firmware|kernel|drivers?|patch|rev|revision|sections?|sec|clauses?|articles?|art|chapters?|chap|"
    r"paragraphs?|para|rules?|"
    r"fig(?:ure)?s?|tables?|items?|appendix|annex|steps?|parts?|exercise|theorem|see|abschnitt|kapitel|"
    r"artikel|ziffer|secci[oó]n|"
    r"cap[ií]tulo|art[ií]culo|chapitre|verziya|верси\w*|раздел\w*|пункт\w*|глав\w*|стать\w*|release|replaces?)\b|"
    r"版本|版|第|章|节|節|条|バージョン|버전|संस्करण|เวอร์ชัน|§|\bv)"
)
_PORT = re.compile(r":[0-9]{2,5}\b|/[0-9]{1,2}\b")
_ADDRESS_BEHIND = re.compile(
    r"(?i)\W{1,3}(?:\w+\W+){0,3}?(?:ip|address|host|server|answers|responded|logged|connected)\b"
)
_CARD_WORDS = re.compile(
    r"(?i)\b(?:card|visa|master ?card|amex|american express|discover|diners|jcb|union ?pay|maestro|credit|"
    r"debit|cvv|cvc|expir\w*|"
    r"karte|kreditkarte|carte|tarjeta|cart[aã]o|carta|kaart|karta|kart)|карт|卡|カード|카드|कार्ड|บัตร|بطاقة"
)
_MASK = re.compile(r"\[(?:email|ip address|phone number|card number)\]")
_NEAR, _WORDS_NEAR = 400, 6  # characters and words before a number that may say what it is
_RESOLVERS = frozenset(("8.8.8.8", "8.8.4.4", "9.9.9.9"))  # addresses of small numbers that everybody knows


def mask_private(text: str, kinds: tuple[PrivateKind, ...], notices: Counter[str] | None = None) -> str:
    """`text` with personal data of these kinds masked; `notices` counts each. Masking twice is masking once."""
    for kind, present, pattern, true in _SEARCHES:
        if kind in kinds and present(text):
            text, count = _masked(text, pattern, true, MASKS[kind])
            if count and notices is not None:
                notices[f"masked: {kind}"] += count
    return text


def _masked(text: str, pattern: re.Pattern[str], true: Callable[[re.Match[str]], bool], mask: str) -> tuple[str, int]:
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if not true(match):
            return match[0]
        count += 1
        return mask

    return pattern.sub(replace, text), count


def is_card_number(text: str) -> bool:
    """Whether its digits are as many as an issuer gives, start as its do and pass the checksum (Luhn, US patent
    2,950,048; ISO/IEC 7812-1)."""
    digits = "".join(filter(str.isdigit, text))
    if len(set(digits)) < 2 or not any(len(digits) in sizes and starts.match(digits) for starts, sizes in _ISSUERS):
        return False
    values = [int(digit) for digit in digits]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in values[-2::-2]]
    return (sum(values[-1::-2]) + sum(doubled)) % 10 == 0


_ISSUERS = (
    (re.compile("4"), (13, 16, 19)),  # Visa
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile("3[47]"), (15,)),  # American Express
    (re.compile("6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile("35(?:2[89]|[3-8])"), (16,)),  # JCB
    (re.compile("30[0-5]|3[68]"), (14,)),  # Diners Club
    (re.compile("62"), (16, 17, 18, 19)),  # UnionPay
)
_GROUPED = re.compile(r"[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5}")


def _is_card(match: re.Match[str]) -> bool:
    """A card's number, and written or named as one: the checksum alone lets every tenth number pass."""
    if not is_card_number(match[0]):
        return False
    before, behind = _line_around(match)
    if _CARD_WORDS.search(before) or _CARD_WORDS.search(behind):
        return True
    groups = _GROUPED.fullmatch(match[0])
    if not groups or before[-2:].strip().isdigit() or behind[:2].strip().isdigit():  # one of a row of numbers
        return False
    return "-" in match[0] or re.search(r"[^\W\d_]", before + behind) is not None


def _line_around(match: re.Match[str]) -> tuple[str, str]:
    """What stands before and behind on the same line, within reach and without masks."""
    text, start, stop = match.string, match.start(), match.end()
    before = text[max(text.rfind("\n", 0, start) + 1, start - _NEAR) : start]
    line_end = text.find("\n", stop, stop + _NEAR)
    return _MASK.sub("#", before), _MASK.sub("#", text[stop : line_end if line_end >= 0 else stop + _NEAR])


def _is_ip4(match: re.Match[str]) -> bool:
    """A public address, and not the number of a version or a section: as the nearest word before it says, or by its
    numbers, which are small in those."""
    if not is_public_address(match[0]):
        return False
    before, behind = _line_around(match)
    if before.endswith(("://", "@")) or _PORT.match(behind):
        return True
    said = [*_SAYS.finditer(" ".join(before.split()[-_WORDS_NEAR:]))]
    if said:
        return said[-1]["address"] is not None
    if _ADDRESS_BEHIND.match(behind):
        return True
    parts = [int(part) for part in match[0].split(".")]
    return max(parts) >= 100 or sum(part >= 32 for part in parts) >= 2 or match[0] in _RESOLVERS


def _is_ip6(match: re.Match[str]) -> bool:
    """A public address of several long groups; names of programs such as A::B are none."""
    groups = [group for group in match[0].split(":") if group]
    long = sum(len(group) >= 3 for group in groups)
    return len(groups) >= 3 and long >= 2 and any(map(str.isdigit, match[0])) and is_public_address(match[0])


def is_public_address(text: str) -> bool:
    """Whether it is an IP address that belongs to someone: no private, local, reserved or documentation range."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _has_digits(text: str) -> bool:
    return _DIGITS.search(text) is not None


def _may_call(text: str) -> bool:
    return _has_digits(text) or _PLUS.search(text) is not None


# Cards before phones, whose pattern fits parts of them. Each with a quick test of whether the text can hold one.
_DIGITS, _DOTTED = re.compile(r"[0-9]{3}"), re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_PLUS = re.compile(r"\+[0-9]")
_SEARCHES: tuple[tuple[PrivateKind, Callable[[str], bool], re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("email", lambda text: "@" in text or "＠" in text, _EMAIL, lambda match: True),
    ("ip", lambda text: _DOTTED.search(text) is not None, _IP4, _is_ip4),
    ("ip", lambda text: _COLONS.search(text) is not None, _IP6, _is_ip6),
    ("card", _has_digits, _CARD, _is_card),
    (
        "phone",
        lambda text: _has_digits(text) or _PLUS.search(text) is not None,
        _PHONE,
        lambda match: 7 <= sum(map(str.isdigit, match[0])) <= 15,
    ),
)
