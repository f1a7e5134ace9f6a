"""One pass over a text: every count that the quality rules and the quality classifier ask for.

    text ─▶ code points ─▶ words, lines, paragraphs as hashes and lengths ─▶ counts; repeated lines, paragraphs and
    n-grams

Words are what whitespace separates. Two of them are the same when their 64-bit hashes are: within one text a false
match has a chance below 1e-9 even at a million words. Compiled at the first call and kept on disk for the next process
(about six seconds, then half a second).
"""

from __future__ import annotations

import functools
import unicodedata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmforge.compiled import Number, compiled, inlined

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int32]

TERMINAL = ".!?\"'”’»。！？؟।॥։۔።"  # what may end a sentence, its closing quote included
BULLETS = "•●▪‣◦■□○·∙►"  # and, alone as a word, - * –
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al. 2021
SHORT_LINE = 30  # characters; Penedo et al. 2024
_LETTER, _SPACE, _TEXT, _END, _BULLET = 1, 2, 4, 8, 16
_KNOWN = 0x33480  # code points classified; those beyond are private, unassigned or tags
_SEED, _PRIME, _MIX = 0xCBF29CE484222325, 0x100000001B3, 0xFF51AFD7ED558CCD
_BASE = 0x9E3779B97F4A7C15  # odd: of the polynomial that joins word hashes
_WHOLE = (1 << 64) - 1


class Scan(NamedTuple):
    """What was counted. Shares are of the text's characters."""

    characters: int
    words: int
    text_words: int  # words with a letter or digit
    text_word_characters: int  # the characters of these
    letter_words: int  # words with a letter
    longest_word: int
    stop_words: int  # distinct ones of `STOP_WORDS`
    hash_signs: int
    ellipses: int  # … or ...
    braces: int  # {
    sentences: int  # places where a terminal mark ends a word
    line_ends: int
    lines: int  # that hold words
    line_characters: int  # theirs
    bullet_lines: int
    ellipsis_lines: int  # ending with one
    terminal_lines: int  # ending with one of `TERMINAL`, an ellipsis excepted
    short_lines: int  # of at most `SHORT_LINE` characters
    repeated_lines: int  # equal to an earlier one
    repeated_line_characters: int
    paragraphs: int  # separated by blank lines
    repeated_paragraphs: int
    repeated_paragraph_characters: int
    top_ngrams: tuple[float, float, float]  # share of the commonest 2-, 3- and 4-gram, where it occurs twice
    # share inside 5- … 10-grams seen earlier, each character once
    repeated_ngrams: tuple[float, float, float, float, float, float]


def scan(text: str, wrapped: bool = False) -> Scan:
    """Count. With `wrapped`, a line is what stands between blank lines: the text of books is broken at a width."""
    return scan_words(text, wrapped)[0]


def scan_words(text: str, wrapped: bool = False) -> tuple[Scan, Hashes]:
    """`scan`, and the hashes (words,) of the lower-cased letters and digits of each word that has any."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    counts, tops, repeats, plain = _scan(codes, _classes(), wrapped, _STOPS)
    return Scan._make([*counts.tolist(), tuple(tops.tolist()), tuple(repeats.tolist())]), plain


def _plain_hash(word: str) -> int:
    """The hash of a word in lower case, as the compiled pass computes it."""
    value = _SEED
    for character in word:
        value = (value ^ ord(character)) * _PRIME & _WHOLE
    return _finished(value)


def _finished(value: int) -> int:
    value = (value ^ value >> 33) * _MIX & _WHOLE
    return value ^ value >> 29


_STOPS = np.array([_plain_hash(word) for word in STOP_WORDS], np.uint64)


@functools.cache
def _classes() -> npt.NDArray[np.uint32]:
    """(code points,): flags in the low 8 bits, the lower-case code point above them."""
    table = np.zeros(_KNOWN, np.uint32)
    for code in range(_KNOWN):
        character = chr(code)
        category = unicodedata.category(character)
        letter, space = category[0] in "LM", character.isspace()
        low = character.lower()
        flags = _LETTER * letter | _SPACE * space | _TEXT * (letter or category[0] == "N")
        flags |= _END * (character in TERMINAL) | _BULLET * (character in BULLETS)
        table[code] = flags | (ord(low) if len(low) == 1 else code) << 8
    return table


@compiled
def _scan(codes: Codes, classes: Codes, wrapped: bool, stops: Hashes) -> Any:
    size = len(codes)
    most = size // 2 + 1
    words, lengths, plain = np.empty(most, np.uint64), np.empty(most, np.int32), np.empty(most, np.uint64)
    lines, line_lengths = np.empty(most, np.uint64), np.empty(most, np.int32)
    paragraphs, paragraph_lengths = np.empty(most, np.uint64), np.empty(most, np.int32)
    base, prime, seed = np.uint64(_BASE), np.uint64(_PRIME), np.uint64(_SEED)
    count = plain_count = line_count = paragraph_count = 0
    text_words = text_characters = letter_words = longest = 0
    hash_signs = ellipses = braces = sentences = line_ends = 0
    line_characters = bullets = ellipsis_lines = terminal_lines = short_lines = 0
    stop_mask = 0
    word_hash, plain_hash, start, flags = seed, seed, -1, np.int64(0)
    line_hash, line_length, line_words, physical = np.uint64(0), 0, 0, 0
    paragraph_hash, paragraph_length, paragraph_words = np.uint64(0), 0, 0
    first_bullet = ends_terminal = ends_ellipsis = False
    for place in range(size + 1):
        code = codes[place] if place < size else np.uint32(10)
        entry = classes[code] if code < len(classes) else np.uint32(0)
        if not entry & _SPACE:
            if start < 0:
                start, word_hash, plain_hash, flags = place, seed, seed, np.int64(0)
            word_hash = (word_hash ^ np.uint64(code)) * prime
            flags |= np.int64(entry & 0xFF)
            if entry & _TEXT:
                plain_hash = (plain_hash ^ np.uint64(entry >> 8)) * prime
            if code == 35:
                hash_signs += 1
            elif code == 123:
                braces += 1
            elif code == 0x2026 or (code == 46 and place >= 2 and codes[place - 1] == 46 and codes[place - 2] == 46):
                ellipses += 1
            continue
        if start >= 0:  # a word ends here
            length = place - start
            value = _finish(word_hash)
            words[count], lengths[count] = value, length
            longest = max(longest, length)
            count += 1
            if flags & _TEXT:
                text_words += 1
                text_characters += length
                plain_hash = _finish(plain_hash)
                plain[plain_count] = plain_hash
                plain_count += 1
                for number in range(len(stops)):
                    if stops[number] == plain_hash:
                        stop_mask |= 1 << number
            if flags & _LETTER:
                letter_words += 1
            last = codes[place - 1]
            ends_ellipsis = last == 0x2026 or (
                length >= 3 and last == 46 and codes[place - 2] == 46 and codes[place - 3] == 46
            )
            last_entry = classes[last] if last < len(classes) else np.uint32(0)
            ends_terminal = last_entry & _END != 0 and not ends_ellipsis
            if ends_terminal or ends_ellipsis:
                sentences += 1
            if line_words == 0:
                head = codes[start]
                head_entry = classes[head] if head < len(classes) else np.uint32(0)
                first_bullet = head_entry & _BULLET != 0 or (
                    length == 1 and (head == 45 or head == 42 or head == 0x2013)
                )
            line_hash, paragraph_hash = line_hash * base + value, paragraph_hash * base + value
            line_length += length + (line_words > 0)
            paragraph_length += length + (paragraph_words > 0)
            line_words += 1
            paragraph_words += 1
            physical += 1
            start = -1
        if code == 10:
            line_ends += place < size
            blank = physical == 0 or place == size
            if line_words > 0 and (blank or not wrapped):
                lines[line_count], line_lengths[line_count] = line_hash, line_length
                line_count += 1
                line_characters += line_length
                bullets += first_bullet
                ellipsis_lines += ends_ellipsis
                terminal_lines += ends_terminal
                short_lines += line_length <= SHORT_LINE
                line_hash, line_length, line_words = np.uint64(0), 0, 0
            if paragraph_words > 0 and blank:
                paragraphs[paragraph_count], paragraph_lengths[paragraph_count] = paragraph_hash, paragraph_length
                paragraph_count += 1
                paragraph_hash, paragraph_length, paragraph_words = np.uint64(0), 0, 0
            physical = 0
    stop_count = 0
    for number in range(len(stops)):
        stop_count += stop_mask >> number & 1
    again, again_characters = _repeated(lines[:line_count], line_lengths)
    paragraphs_again, paragraphs_again_characters = _repeated(paragraphs[:paragraph_count], paragraph_lengths)
    counts = np.array(
        (
            size,
            count,
            text_words,
            text_characters,
            letter_words,
            longest,
            stop_count,
            hash_signs,
            ellipses,
            braces,
            sentences,
            line_ends,
            line_count,
            line_characters,
            bullets,
            ellipsis_lines,
            terminal_lines,
            short_lines,
            again,
            again_characters,
            paragraph_count,
            paragraphs_again,
            paragraphs_again_characters,
        )
    )
    tops, repeats = _ngrams(words[:count], lengths, size)
    return counts, tops, repeats, plain[:plain_count]


@inlined
def _finish(value: Number) -> Number:
    value = (value ^ value >> np.uint64(33)) * np.uint64(_MIX)
    return value ^ value >> np.uint64(29)


@compiled
def _table_size(entries: Number) -> Number:
    size = 16
    while size < 2 * entries:
        size *= 2
    return size


@compiled
def _repeated(hashes: Hashes, lengths: Lengths) -> Any:
    """How many of `hashes` equal an earlier one, and the sum of their `lengths`."""
    size = _table_size(len(hashes))
    table = np.zeros(size, np.uint64)
    mask, one = np.uint64(size - 1), np.uint64(1)
    again = characters = 0
    for number in range(len(hashes)):
        key = hashes[number] | one  # 0 marks an empty place
        place = _finish(key) & mask
        while table[place] != 0 and table[place] != key:
            place = (place + one) & mask
        if table[place] == key:
            again += 1
            characters += lengths[number]
        table[place] = key
    return again, characters


@compiled
def _ngrams(words: Hashes, lengths: Lengths, characters: Number) -> Any:
    """(3,) shares of the commonest 2- to 4-gram, spaces included, and (6,) shares inside repeated 5- to 10-grams,
    spaces not."""
    count = len(words)
    tops, repeats = np.zeros(3), np.zeros(6)
    base, one = np.uint64(_BASE), np.uint64(1)
    prefix, before = np.zeros(count + 1, np.uint64), np.zeros(count + 1, np.int64)
    for number in range(count):
        prefix[number + 1] = prefix[number] * base + words[number]
        before[number + 1] = before[number] + lengths[number]
    size = _table_size(count)
    table, stamps, seen = np.zeros(size, np.uint64), np.zeros(size, np.int8), np.zeros(size, np.int32)
    mask, power = np.uint64(size - 1), base
    for length in range(2, 11):
        power *= base
        best = number = inside = 0
        while number + length <= count:
            key = prefix[number + length] - prefix[number] * power
            place = _finish(key) & mask
            while stamps[place] == length and table[place] != key:
                place = (place + one) & mask
            found = stamps[place] == length
            width = before[number + length] - before[number]
            if length < 5:
                seen[place] = seen[place] + 1 if found else 1
                if found:
                    best = max(best, seen[place] * (width + length - 1))
            elif found:
                inside += width
                number += length - 1  # each character counts once
            if not found:
                table[place], stamps[place] = key, length
            number += 1
        if characters:
            if length < 5:
                tops[length - 2] = best / characters
            else:
                repeats[length - 5] = inside / characters
    return tops, repeats
