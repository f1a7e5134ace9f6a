r"""What a token may not cross: text → pieces, as a loop over UTF-8 bytes.

Two ways to cut, each a regular expression that stands in tokenizer.json, so that any program with `tokenizers` cuts
alike:

    WORDS        a word with the sign or space before it · up to three digits · signs · line ends and the indentation
    after them · blanks
    SUPERWORDS   up to three digits · line ends and the indentation after them · everything else between these: whole
    lines of words

A letter's combining marks (\p{M}: vowel signs of Devanagari, points of Hebrew, accents written apart) are of its word,
as in GPT-4o's pattern (o200k_base of tiktoken). Vocabularies that were learned before that name WORDS_WITHOUT_MARKS,
which cuts at each mark, and go on being cut by it.

The classes of characters (letter, number, blank, sign) are asked from the library's own regular expressions, so the
Unicode version is the library's. A test compares every code point below U+3000 and hypothesis strings of any.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from lmforge.compiled import Number, compiled, inlined

WORDS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+| ?[\p{N}]{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
WORDS_WITHOUT_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}]+| ?[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
# A blank run with a line end in it, numbers with the space before them, then any characters that neither of these would
# take.
SUPERWORDS = r"\s*[\r\n]+[ \t]*| ?[\p{N}]{1,3}|(?:[^\s\p{N}]|(?! \p{N})[^\S\r\n](?!\s*[\r\n]))+"

OWN_PATTERNS = (WORDS, SUPERWORDS, WORDS_WITHOUT_MARKS)  # what the loops below can cut by

SIGN, LETTER, NUMBER, BLANK, SPACE, LINE = range(6)  # from BLANK on: what \s takes
_LOW, _BLOCK = 0x3000, 1024
_END = 9  # the class of what stands after the last character
Bytes = NDArray[np.uint8]


@cache
def _low_classes(marks: bool) -> Bytes:
    """(0x3000,) the class of every code point below; nearly all there is in texts of alphabets."""
    return np.concatenate([_block(first, marks) for first in range(0, _LOW, _BLOCK)])


@cache
def character_classes(marks: bool) -> Bytes:
    """(0x110000,) the class of every code point, combining marks among the letters where `marks`. Beyond the planes
    that hold letters everything is a sign, surrogates too."""
    classes = np.full(0x110000, SIGN, dtype=np.uint8)
    classes[:_LOW] = _low_classes(marks)
    for first in (*range(_LOW, 0xD800, _BLOCK), *range(0xE000, 0x34000, _BLOCK), 0xE0000):
        classes[first : first + _BLOCK] = _block(first, marks)
    return classes


def classes_for(text: Bytes, marks: bool) -> Bytes:
    """The table that `text` needs: asking the library about every code point takes a quarter of a second that few texts
    need."""
    # 0xE3 begins U+3000
    return character_classes(marks) if len(text) and text.max() >= 0xE3 else _low_classes(marks)


def _block(first: int, marks: bool) -> Bytes:
    """The classes of `_BLOCK` code points: the library finds the runs, and one character of each tells its class."""
    text = "".join(map(chr, range(first, first + _BLOCK)))
    letter = r"[\p{L}\p{M}]" if marks else r"\p{L}"
    runs = pre_tokenizers.Split(Regex(rf"{letter}+|\p{{N}}+|\s+"), "isolated").pre_tokenize_str(text)
    names = "".join(run[0] for run, _ in runs)
    classes = np.full(_BLOCK, SIGN, dtype=np.uint8)
    for pattern, kind in ((letter, LETTER), (r"\p{N}", NUMBER), (r"\s", BLANK)):
        others = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(names)
        for at in set(range(len(names))) - {at for _, span in others for at in range(*span)}:
            start, stop = runs[at][1]
            classes[start:stop] = kind
    if first == 0:
        classes[ord(" ")] = SPACE
        classes[[ord("\r"), ord("\n")]] = LINE
    return classes


@inlined
def look(text: Bytes, at: Number, classes: Bytes) -> Number:
    """The class of the character at `at`, in valid UTF-8."""
    first = np.int64(text[at])
    if first < 0x80:
        kind = classes[first]
    elif first < 0xE0:
        kind = classes[(first & 0x1F) << 6 | (np.int64(text[at + 1]) & 0x3F)]
    elif first < 0xF0:
        kind = classes[(first & 0x0F) << 12 | (np.int64(text[at + 1]) & 0x3F) << 6 | (np.int64(text[at + 2]) & 0x3F)]
    else:
        low = (
            (np.int64(text[at + 1]) & 0x3F) << 12
            | (np.int64(text[at + 2]) & 0x3F) << 6
            | (np.int64(text[at + 3]) & 0x3F)
        )
        kind = classes[(first & 0x07) << 18 | low]
    return kind


@inlined
def next_after(text: Bytes, at: Number) -> Number:
    """Where the character at `at` ends."""
    first = text[at]
    return at + 1 if first < 0x80 else at + 2 if first < 0xE0 else at + 3 if first < 0xF0 else at + 4


@inlined
def _run_end(text: Bytes, at: Number, stop: Number, classes: Bytes, wanted: Number) -> Number:
    """Where characters of class `wanted` end."""
    while at < stop and look(text, at, classes) == wanted:
        at = next_after(text, at)
    return at


@compiled
def _digits_end(text: Bytes, at: Number, stop: Number, classes: Bytes) -> Number:
    """Where at most three numbers end."""
    most = 3
    while at < stop and most > 0 and look(text, at, classes) == NUMBER:
        at = next_after(text, at)
        most -= 1
    return at


@compiled
def _blanks(text: Bytes, at: Number, stop: Number, classes: Bytes) -> tuple[Number, Number, Number]:
    """(end of the blanks at `at`, their last character, the end of their last line end or -1)."""
    last, line = at, -1
    while at < stop:
        kind = look(text, at, classes)
        if kind < BLANK:
            break
        last = at
        at = next_after(text, at)
        if kind == LINE:
            line = at
    return at, last, line


@compiled
def _indented(text: Bytes, at: Number, stop: Number) -> Number:
    while at < stop and (text[at] == 32 or text[at] == 9):
        at += 1
    return at


@compiled
def _blanks_end(text: Bytes, at: Number, stop: Number, classes: Bytes) -> Number:
    """The end of the piece of blanks at `at`: with the last line end and the indentation after it, or without the last
    blank."""
    end, last, line = _blanks(text, at, stop, classes)
    if line >= 0:
        return _indented(text, line, stop)
    return end if end == stop or last == at else last  # the last blank belongs to what follows it


@compiled
def word_end(text: Bytes, at: Number, stop: Number, classes: Bytes) -> Number:
    """The end of the piece at `at` by WORDS; its alternatives in their order."""
    kind = look(text, at, classes)
    after = next_after(text, at)
    following = look(text, after, classes) if after < stop else np.uint8(_END)
    if kind == LETTER or (following == LETTER and kind != NUMBER and kind != LINE):
        end = _run_end(text, after, stop, classes, LETTER)
    elif kind == SIGN or (kind == SPACE and following == SIGN):
        end = _run_end(text, after, stop, classes, SIGN)
    elif kind == NUMBER:
        end = _digits_end(text, at, stop, classes)
    elif kind == SPACE and following == NUMBER:
        end = _digits_end(text, after, stop, classes)
    else:
        end = _blanks_end(text, at, stop, classes)
    return end


@compiled
def superword_end(text: Bytes, at: Number, stop: Number, classes: Bytes) -> Number:
    """The end of the piece at `at` by SUPERWORDS; its alternatives in their order."""
    kind = look(text, at, classes)
    if kind == NUMBER:
        return _digits_end(text, at, stop, classes)
    if kind == SPACE and at + 1 < stop and look(text, at + 1, classes) == NUMBER:
        return _digits_end(text, at + 1, stop, classes)
    here = at
    while here < stop:
        kind = look(text, here, classes)
        if kind == NUMBER:
            break
        if kind < BLANK:
            here = next_after(text, here)
            continue
        end, last, line = _blanks(text, here, stop, classes)
        if line >= 0:
            return here if here > at else _indented(text, line, stop)
        if text[last] == 32 and end < stop and look(text, end, classes) == NUMBER:
            return last
        here = end
    return here


@inlined
def piece_end(text: Bytes, at: Number, stop: Number, classes: Bytes, superwords: bool) -> Number:
    """The end of the piece that begins at `at`, before `stop`."""
    return superword_end(text, at, stop, classes) if superwords else word_end(text, at, stop, classes)


@compiled
def fingerprint(text: Bytes, start: Number, stop: Number) -> Number:
    """63 bits from bytes (FNV-1a, then mixed so that the low ones are good too)."""
    value = np.uint64(0xCBF29CE484222325)
    for at in range(start, stop):
        value = (value ^ np.uint64(text[at])) * np.uint64(0x100000001B3)
    value = (value ^ (value >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64((value ^ (value >> np.uint64(29))) >> np.uint64(1))


@compiled
def _ends(text: Bytes, classes: Bytes, superwords: bool, ends: NDArray[np.int64]) -> Number:
    at = number = 0
    while at < len(text):
        at = piece_end(text, at, len(text), classes, superwords)
        ends[number] = at
        number += 1
    return number


def cut(text: str, superwords: bool = False, marks: bool = True) -> list[str]:
    """The pieces of a text (for looking at; counting and encoding never make them)."""
    data = text.encode()
    places = np.empty(len(data), dtype=np.int64)
    number = _ends(as_bytes(data), classes_for(as_bytes(data), marks), superwords, places)
    ends = places[:number].tolist()
    return [data[start:stop].decode() for start, stop in zip([0, *ends], ends, strict=False)]


def as_bytes(data: Any) -> Bytes:
    """Any buffer as an array, without copying it."""
    return np.frombuffer(data, dtype=np.uint8)


def without_surrogates(text: str) -> str:
    """A pair of surrogates written as two halves is one character; a lone one, which UTF-8 cannot write, becomes
    U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def joined(texts: list[str]) -> tuple[Bytes, NDArray[np.int64]]:
    """(the UTF-8 of texts, one after another; where each ends)."""
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError:
        encoded = [without_surrogates(text).encode() for text in texts]
    return as_bytes(b"".join(encoded)), np.cumsum([0, *map(len, encoded)], dtype=np.int64)[1:]
