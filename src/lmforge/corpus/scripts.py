"""What each character is, by the Unicode character database: letters, marks, ends of sentences, and whether its script
puts spaces between words.

    table()[code point] = flags in the low 8 bits, the lower-case code point above them

In a script without spaces each sign (with the marks and the punctuation behind it) counts as a word of its own, as the
default word boundaries of Unicode have it (UAX #29; "Line_Break=SA" and the ideographs break everywhere), and is worth
`WORTH` twelfths of a word: running text of the same content, the Universal Declaration of Human Rights, has so many
signs for each word of the English one. A sign of Chinese, Japanese or Korean says as much as two letters (`letters`).
The properties come from the `regex` package, which carries the database of a fixed Unicode version.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

import numpy as np
import numpy.typing as npt
import regex

LETTER, SPACE, TEXT, END, BULLET, ALONE, MARK, WIDE = 1, 2, 4, 8, 16, 32, 64, 128
KNOWN = 0x33480  # code points classified; those beyond are private, unassigned or tags
BULLETS = "•●▪‣◦■□○·∙►"  # and, alone as a word, - * –
WORD = 12  # twelfths of a word
# twelfths of a word that a sign (without its marks) is worth; scripts that put no spaces between words
WORTH = {
    "Han": 8, "Hiragana": 6, "Katakana": 5, "Yi": 8, "Thai": 4, "Lao": 4, "Khmer": 4, "Myanmar": 4, "Tibetan": 4,
    "Tai_Tham": 4, "New_Tai_Lue": 4, "Tai_Viet": 4, "Javanese": 4, "Balinese": 4, "Cham": 4, "Bopomofo": 4,
}  # fmt: skip
_NO_SENTENCE_MARKS = ("Thai", "Lao", "Tai_Tham", "New_Tai_Lue", "Tai_Viet")  # a space ends a sentence, if anything does
_PARTING = "\u1361\U0001039f\U000103d0"  # word dividers of Ethiopic, Ugaritic and Old Persian, where no blank stands
_WIDE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Yi}ー々]"
_EVERY = "".join(map(chr, (code for code in range(KNOWN) if not 0xD800 <= code < 0xE000)))


def _having(pattern: str) -> set[str]:
    return set(regex.findall(pattern, _EVERY))


@functools.cache
def terminal() -> str:
    """What may end a sentence, in every script, its closing quote included."""
    return "".join(sorted(_having(r"\p{Sentence_Terminal}") | set(".!?\"'”“’»›」』။།༎៕꧈꧉")))


@functools.cache
def table() -> npt.NDArray[np.uint32]:
    """(KNOWN,): flags in the low 8 bits, the lower-case code point above them."""
    alone = _having("[" + "".join(rf"\p{{{script}}}" for script in WORTH) + "ー々]")
    wide, ends, classes = _having(_WIDE), set(terminal()), np.zeros(KNOWN, np.uint32)
    for code in range(KNOWN):
        character = chr(code)
        category = unicodedata.category(character)
        letter, mark = category[0] in "LM", category[0] == "M"
        text = letter or category[0] == "N"
        low = character.lower()
        flags = LETTER * letter | SPACE * (character.isspace() or character in _PARTING) | TEXT * text | MARK * mark
        flags |= END * (character in ends) | BULLET * (character in BULLETS)
        flags |= ALONE * (letter and not mark and character in alone) | WIDE * (text and character in wide)
        classes[code] = flags | (ord(low) if len(low) == 1 else code) << 8
    return classes


@functools.cache
def worth() -> npt.NDArray[np.uint8]:
    """(KNOWN,): twelfths of a word that a sign of a script without spaces is worth; 0 for other characters."""
    twelfths = np.zeros(KNOWN, np.uint8)
    for script, value in WORTH.items():
        for character in _having(rf"\p{{{script}}}"):
            twelfths[ord(character)] = value
    twelfths[[ord("ー"), ord("々")]] = WORTH["Katakana"]
    return twelfths


@functools.cache
def unmarked() -> npt.NDArray[np.bool_]:
    """(KNOWN,): whether the character's script has no mark for the end of a sentence."""
    has_none = np.zeros(KNOWN, np.bool_)
    for character in _having("[" + "".join(rf"\p{{{script}}}" for script in _NO_SENTENCE_MARKS) + "]"):
        has_none[ord(character)] = True
    return has_none


_WIDE_SIGN, _COMBINING = regex.compile(_WIDE), regex.compile(r"\p{M}")
_SIGN = regex.compile("[" + "".join(rf"\p{{{script}}}" for script in WORTH) + "ー々]")


# every script of `WORTH`, every wide sign, and no letter or mark of Latin, Greek, Cyrillic, Hebrew and Arabic: one
# search settles most texts
_MAY_BE_SIGN = re.compile("[\u02ea\u02eb\u0e00-\u1dff\u2e80-\U0010ffff]")


def _has_signs(text: str) -> bool:
    return not text.isascii() and _MAY_BE_SIGN.search(text) is not None


def characters(text: str) -> int:
    """The characters of a text, those of Chinese, Japanese and Korean counted double: what says about as much."""
    return len(text) + (sum(1 for _ in _WIDE_SIGN.finditer(text)) if _has_signs(text) else 0)


def width(text: str) -> int:
    """`characters` without combining marks: the room that a text takes."""
    return len(text) if text.isascii() else characters(text) - sum(1 for _ in _COMBINING.finditer(text))


def pieces(text: str) -> tuple[list[str], str]:
    """(the words of a text, the blank between them); where its script puts none, pieces of two signs and nothing."""
    if not _has_signs(text) or 2 * sum(1 for _ in _SIGN.finditer(text)) < len(text) - text.count(" "):
        return text.replace("\u1361", " ").split(), " "
    return regex.findall(r"\X\X?", text), ""


# a sign with its marks and the punctuation behind it, or what else stands between blanks and signs
_SIGN_LETTER = "[[" + "".join(rf"\p{{{script}}}" for script in WORTH) + r"ー々]&&\p{L}]"
WORD_PATTERN = rf"(?:{_SIGN_LETTER}\p{{M}}*[^\s\p{{L}}\p{{N}}]*|[\S--{_SIGN_LETTER}]+)"
_WORDS = regex.compile(WORD_PATTERN, regex.V1)
_UNITS = regex.compile(rf"\s*{WORD_PATTERN}\s*\Z|\s*{WORD_PATTERN}|\s+", regex.V1)
_UNITS_BETWEEN_BLANKS = re.compile(r"\s*\S+\s*\Z|\s*\S+|\s+")


def words(text: str) -> list[str]:
    """The words of a text: what stands between blanks, in a script without them each sign, with the punctuation behind
    it."""
    return _WORDS.findall(text.replace("\u1361", " ")) if _has_signs(text) else text.split()


def units(text: str) -> list[str]:
    """`words` with the blanks before each of them (and at the end): joined they are the text again."""
    return _UNITS.findall(text) if _has_signs(text) else _UNITS_BETWEEN_BLANKS.findall(text)


def has_blanks(text: str) -> bool:
    """Whether blanks part the words of most of a text."""
    return pieces(text)[1] == " "


def codes(text: str) -> npt.NDArray[np.uint32]:
    """(characters,): the code points; a lone surrogate becomes a question mark."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)
    encoded = text.encode("utf-32-le" if sys.byteorder == "little" else "utf-32-be", "replace")
    return np.frombuffer(encoded, np.uint32)
