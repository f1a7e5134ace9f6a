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
_EMAIL = re.compile(
    r"(?<![\w.+\]-])[A-Za-z0-9_][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![\w@-])"
)
# Each begins with the characters that it can begin with and looks back past them: so the search runs from digit to
# digit. None begins right after a "]", and no address with colons ends right before a "[", so that what stands beside a
# mask stays as it was before the mask.
_IP4 = re.compile(r"[0-9](?<![\w.\]-].)[0-9]{0,2}\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}(?![\w-]|\.[0-9])")
_IP6 = re.compile(
    r"[0-9A-Fa-f:](?<![\w:.\]].)(?:(?<=:):|[0-9A-Fa-f]{0,3}:)(?:[0-9A-Fa-f]{0,4}:){0,6}[0-9A-Fa-f]{0,4}(?![\w:\[])"
)
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_CARD = re.compile(r"[2-6](?<![\w.\]-].)(?:[ -]?[0-9]){12,18}(?![\w-]|\.[0-9])")
# International with +; North American (123) 456-7890, 123-456-7890, 123.456.7890; nothing that is a bare run of digits.
_PHONE = re.compile(
    r"[+(0-9](?<![\w.+\]-].)(?:(?<=\+)[0-9]{1,3}(?:[ .-]?\(?[0-9]{1,4}+\)?){2,6}+|(?<=\()[0-9]{3}\) "
    r"?[0-9]{3}[.-][0-9]{4}"
    r"|(?<=1)[ .-](?:\([0-9]{3}\) "
    r"?|[0-9]{3}[.-])[0-9]{3}[.-][0-9]{4}|(?<=[0-9])[0-9]{2}[.-][0-9]{3}[.-][0-9]{4})(?![\w-]|\.[0-9])"
)


def mask_private(text: str, kinds: tuple[PrivateKind, ...], notices: Counter[str] | None = None) -> str:
    """`text` with personal data of these kinds masked; `notices` counts each. Masking twice is masking once."""
    for kind, present, pattern, true in _SEARCHES:
        if kind in kinds and present(text):
            text, count = _masked(text, pattern, true, MASKS[kind])
            if count and notices is not None:
                notices[f"masked: {kind}"] += count
    return text


def _masked(text: str, pattern: re.Pattern[str], true: Callable[[str], bool], mask: str) -> tuple[str, int]:
    count = 0

    def replace(found: re.Match[str]) -> str:
        nonlocal count
        if not true(found[0]):
            return found[0]
        count += 1
        return mask

    return pattern.sub(replace, text), count


def is_card_number(text: str) -> bool:
    """Whether its 13 to 19 digits start as an issuer's do and pass the checksum (Luhn, US patent 2,950,048; ISO/IEC
    7812-1)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or text[0] not in "23456" or len(set(digits)) < 2:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_public_address(text: str) -> bool:
    """Whether it is an IP address that belongs to someone: no private, local, reserved or documentation range."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _has_digits(text: str) -> bool:
    return _DIGITS.search(text) is not None


# Cards before phones, whose pattern fits parts of them. Each with a quick test of whether the text can hold one.
_DIGITS, _DOTTED = re.compile(r"[0-9]{3}"), re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]")
_SEARCHES: tuple[tuple[PrivateKind, Callable[[str], bool], re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", lambda text: "@" in text, _EMAIL, lambda found: True),
    ("ip", lambda text: _DOTTED.search(text) is not None, _IP4, is_public_address),
    ("ip", lambda text: _COLONS.search(text) is not None, _IP6, is_public_address),
    ("card", _has_digits, _CARD, is_card_number),
    ("phone", _has_digits, _PHONE, lambda found: 7 <= sum(map(str.isdigit, found)) <= 15),
)
