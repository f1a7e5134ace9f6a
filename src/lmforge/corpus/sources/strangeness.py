"""How out of place the characters of a text look when its bytes are read in an encoding: what tells the right one from
the wrong ones that decode too."""

from __future__ import annotations

import regex

FEW = 4  # bytes beyond ASCII below which nothing speaks against the encoding of most old files
MOST_STRANGE = 0.2  # share of the characters beyond ASCII that may look out of place
TWO_BYTES = frozenset(("gb18030", "cp950", "big5hkscs", "cp949", "cp932", "euc_jp", "johab"))
BEYOND_ASCII = regex.compile(r"[^\x00-\x7f]")
# What running text does not hold: controls, unassigned and private characters, half-width kana …
ODD = regex.compile(r"[\p{Cn}\p{Co}\x7f-\x9f\ufffd\uff61-\uff9f\u2500-\u25ff]|[\x00-\x08\x0e-\x1a\x1c-\x1f]")
# … a sign between two letters; a capital after a small letter; Latin letters against those of another alphabet
_SIGN_INSIDE = regex.compile(
    r"(?<=\p{L}\p{M}*)[^\x00-\x7f\p{L}\p{M}\p{Z}\p{P}](?=\p{L})|[¿¡«»„‚‹›](?<=\p{L}.)(?=\p{L})"
)
# … or before a small one at the beginning of a word; a fraction behind a letter
_SIGN_BEFORE = regex.compile(
    r"(?<![\p{L}\p{N}])[^\x00-\x7f\p{L}\p{M}\p{Z}\p{P}\p{N}](?=\p{Ll}{2})|(?<=\p{L})[¼½¾¨¸˝˘ˇ˛]"
)
_CAPITAL_INSIDE = regex.compile(r"\p{Ll}(?=[^\x00-\x7f])\p{Lu}|(?<=[^\x00-\x7f])(?<=\p{Ll})[A-Z](?=\p{Ll})")
_ALPHABETS = r"\p{Cyrillic}\p{Greek}\p{Hebrew}\p{Arabic}\p{Thai}"
_MIXED = regex.compile(rf"\p{{Latin}}[{_ALPHABETS}]|[{_ALPHABETS}]\p{{Latin}}")
SCRIPTS = tuple(
    regex.compile(f"[{letters}]")
    for letters in (
        r"\u00c0-\u017f\u01a0\u01a1\u01af\u01b0\u0218-\u021b\u1e00-\u1eff",
        r"\p{Cyrillic}", r"\p{Greek}", r"\p{Hebrew}", r"\p{Arabic}", r"\p{Thai}",
        r"\p{Han}\p{Hiragana}\p{Katakana}ー", r"\p{Hangul}", r"\p{Devanagari}", r"\p{Armenian}\p{Georgian}",
        r"\p{Bengali}\p{Tamil}\p{Telugu}\p{Khmer}\p{Myanmar}\p{Ethiopic}",
    )
)  # fmt: skip
# words of Chinese parted by blanks, as those of another script read as Chinese are
_PARTED_HAN = regex.compile(r"\p{Han}\p{Han}[,.!?]? (?=\p{Han}\p{Han})")
_ASCII_LETTERS = regex.compile("[A-Za-z]")
_SYLLABLE = regex.compile(r"[\uac00-\ud7a3]")
_COMMON_HAN = regex.compile(r"[\u4e00-\u9fff]")


def strangeness(sample: bytes, name: str) -> float:
    """How many of the characters beyond ASCII look out of place when the bytes are read in this encoding, as a share;
    1 where they do not decode."""
    try:
        text = sample.decode(name, "replace" if name in TWO_BYTES else "strict")
    except (UnicodeError, LookupError):
        return 1.0
    beyond = len(BEYOND_ASCII.findall(text))
    if not beyond:
        return 1.0
    strange = sum(len(pattern.findall(text)) for pattern in (ODD, _SIGN_INSIDE, _SIGN_BEFORE, _CAPITAL_INSIDE, _MIXED))
    letters = sorted(len(script.findall(text)) for script in SCRIPTS)
    strange += sum(letters[:-1])
    accented = len(SCRIPTS[0].findall(text))  # letters of another alphabet, read as those of Latin-1
    if accented > max(FEW, len(_ASCII_LETTERS.findall(text))):
        strange += accented
    if name in TWO_BYTES:  # rare characters, which a wrong reading is full of
        han = _COMMON_HAN.findall(text)
        try:
            rare = len(han) - sum(_is_common(character, name) for character in han)
        except UnicodeError:
            rare = 0
        strange += rare // 2 + 2 * len(_PARTED_HAN.findall(text))
        if name == "cp949":
            strange += sum(
                1 for syllable in regex.findall(r"[\uac00-\ud7a3]", text) if len(syllable.encode("euc_kr")) > 2
            )
    return min(1.0, strange / beyond)


def is_korean(sample: bytes) -> bool:
    """Whether nearly all is common syllables of Korean (those of KS X 1001) when read so: in GBK each is a common
    character of Chinese; of Shift-JIS, of KOI8 and of DOS most are syllables that nobody writes."""
    text = sample.decode("cp949", "replace")
    return _common_syllables(text) > 0.9 * len(BEYOND_ASCII.findall(text))


def _common_syllables(text: str) -> int:
    return sum(len(syllable.encode("euc_kr")) == 2 for syllable in _SYLLABLE.findall(text))


def _is_common(character: str, name: str) -> bool:
    """Whether a Chinese character stands among the common ones of its encoding (the first level of the standard)."""
    code = character.encode({"cp932": "euc_jp", "big5hkscs": "cp950"}.get(name, name), "ignore")
    if len(code) != 2:
        return False
    if name in ("cp932", "euc_jp"):
        return 0xB0 <= code[0] <= 0xCF
    if name in ("cp950", "big5hkscs"):
        return code[0] <= 0xC6
    return name == "cp949" or (0xB0 <= code[0] <= 0xD7 and code[1] >= 0xA1)
