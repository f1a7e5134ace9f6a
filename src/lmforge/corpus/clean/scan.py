"""One pass over a text: every count that the quality rules and the quality classifier ask for.

    text ─▶ code points ─▶ words, lines, paragraphs as hashes and lengths ─▶ counts; repeated lines, paragraphs and
    n-grams

Words are what white space separates; in scripts without spaces (Chinese, Japanese, Thai, …) each sign is a unit, worth
a part of a word (see corpus/scripts.py), and a run of n words is as many units as n words have there. Two words are the
same when their 64-bit hashes are: within one text a false match has a chance below 1e-9 even at a million words.
Compiled at the first call and kept on disk for the next process (about six seconds, then half a second).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmforge.compiled import Number, compiled, inlined
from lmforge.corpus import scripts
from lmforge.corpus.scripts import ALONE, BULLET, BULLETS, END, LETTER, MARK, SPACE, TEXT, WIDE, WORD

Codes = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int32]

__all__ = ["BULLETS", "STOP_WORDS", "TERMINAL", "Scan", "scan", "scan_words"]
TERMINAL = scripts.terminal()
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al. 2021
SHORT_LINE = 30  # characters; Penedo et al. 2024
_SEED, _PRIME, _MIX = 0xCBF29CE484222325, 0x100000001B3, 0xFF51AFD7ED558CCD
_BASE = 0x9E3779B97F4A7C15  # odd: of the polynomial that joins word hashes
_WHOLE = (1 << 64) - 1


class Units(NamedTuple):
    """The words of a text, and its signs in scripts without spaces: all (units,)."""

    hashes: Hashes
    plain: Hashes  # of the lower-cased letters and digits
    starts: npt.NDArray[np.int64]
    lengths: Lengths
    widths: Lengths  # without combining marks, wide signs counted double
    flags: npt.NDArray[np.uint8]  # of all its characters together
    ends: npt.NDArray[np.uint8]  # 1: it ends in a terminal mark, 2: an ellipsis, 3: a semicolon, 4: a comma
    breaks: npt.NDArray[np.uint8]  # line ends between the unit before and this one, at most 2


class Scan(NamedTuple):
    """What was counted. Shares are of the text's characters."""

    characters: int
    words: int  # units: what white space separates, and signs of scripts without spaces
    text_words: int  # units with a letter or digit
    spaced_words: int  # those of them that white space separates
    spaced_characters: int  # the characters of these, without combining marks, those of Korean counted double
    worth: float  # words, a sign of a script without spaces counted as the part of a word that it is
    unmarked_words: int  # signs of scripts that do not mark the end of a sentence
    letter_words: int  # words with a letter
    longest_word: int
    stop_words: int  # distinct ones of `STOP_WORDS`
    hash_signs: int
    ellipses: int  # … or ...
    braces: int  # {
    sentences: int  # places where a terminal mark or a semicolon ends a word, or parts two of a script but Latin
    line_ends: int
    lines: int  # that hold words
    line_characters: int  # theirs
    bullet_lines: int
    ellipsis_lines: int  # ending with one
    terminal_lines: int  # ending with one of `TERMINAL`, a semicolon or a comma, an ellipsis excepted
    short_lines: int  # of at most `SHORT_LINE` characters, those of Chinese, Japanese and Korean counted double
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
    codes = scripts.codes(text)
    units = Units(*_units(codes, scripts.table()))
    count = len(units.starts)
    worth, no_marks, line_ends = _worth(codes, units.starts, units.flags, scripts.worth(), scripts.unmarked())
    lines, line_counts, paragraphs = _blocks(
        units.hashes, units.starts, units.lengths, units.widths, units.flags, units.ends, units.breaks, wrapped
    )
    tops, repeats = _ngrams(units.hashes, units.lengths, len(codes), count / worth if worth else 1.0)
    counts = _tally(codes, scripts.table(), units.lengths, units.widths, units.flags, units.ends, units.plain, _STOPS)
    scanned = Scan(
        characters=len(codes),
        words=count,
        worth=float(worth),
        unmarked_words=int(no_marks),
        line_ends=int(line_ends),
        **dict(zip(_COUNTS, counts[0].tolist(), strict=True)),
        **dict(zip(_LINE_COUNTS, line_counts.tolist(), strict=True)),
        **_again("line", *lines),
        paragraphs=len(paragraphs[0]),
        **_again("paragraph", *paragraphs),
        top_ngrams=tuple(tops.tolist()),
        repeated_ngrams=tuple(repeats.tolist()),
    )
    return scanned, counts[1]


def _again(name: str, hashes: Hashes, lengths: Lengths) -> dict[str, int]:
    again, characters = _repeated(hashes, lengths)
    return {f"repeated_{name}s": int(again), f"repeated_{name}_characters": int(characters)}


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


@compiled
def _units(codes: Codes, classes: Codes) -> Any:
    """The fields of `Units`."""
    size = len(codes)
    hashes, plain, starts = np.empty(size, np.uint64), np.empty(size, np.uint64), np.empty(size, np.int64)
    lengths, widths = np.empty(size, np.int32), np.empty(size, np.int32)
    flags, ends, breaks = np.empty(size, np.uint8), np.empty(size, np.uint8), np.empty(size, np.uint8)
    prime, seed = np.uint64(_PRIME), np.uint64(_SEED)
    count, start, width, line_ends = 0, -1, 0, 0
    whole, bare, seen = seed, seed, np.uint32(0)
    for place in range(size + 1):
        code = codes[place] if place < size else np.uint32(10)
        entry = classes[code] if code < len(classes) else np.uint32(0)
        space = entry & SPACE != 0
        if start >= 0 and (space or ((entry | seen) & ALONE != 0 and _parts(entry, seen))):  # a unit ends here
            hashes[count], plain[count], starts[count] = _finish(whole), _finish(bare), start
            if place - start == 1 and (codes[start] == 45 or codes[start] == 42 or codes[start] == 0x2013):
                seen |= np.uint32(BULLET)  # - * – alone
            lengths[count], widths[count], flags[count] = place - start, width, seen
            last = classes[codes[place - 1]] if codes[place - 1] < len(classes) else np.uint32(0)
            if place - start > 1 and _closes(codes[place - 1]):  # what ends within brackets ends with them
                inner = classes[codes[place - 2]] if codes[place - 2] < len(classes) else np.uint32(0)
                last |= inner & np.uint32(END)
            ends[count] = _ending(codes, start, place, last)
            count += 1
            start = -1
        if space:
            line_ends += code == 10
            continue
        if start < 0:
            start, width, whole, bare, seen = place, 0, seed, seed, entry & np.uint32(BULLET)
            breaks[count], line_ends = min(line_ends, 2), 0
        whole = (whole ^ np.uint64(code)) * prime
        seen |= entry & np.uint32(0xFF & ~BULLET)
        if entry & TEXT:
            bare = (bare ^ np.uint64(entry >> 8)) * prime
        width += (entry & MARK == 0) + (entry & WIDE != 0)
    return (
        hashes[:count], plain[:count], starts[:count], lengths[:count], widths[:count], flags[:count], ends[:count],
        breaks[:count],
    )  # fmt: skip


@inlined
def _parts(entry: Number, seen: Number) -> Number:
    """Whether a character begins a unit though no space is before it: a sign of a script without spaces, or what is
    none behind one."""
    return (entry & ALONE and seen & TEXT) or (seen & ALONE and entry & TEXT and not entry & (ALONE | MARK))


@inlined
def _closes(code: Number) -> Number:
    return code == 41 or code == 93 or code == 0xFF09 or code == 0xFF3D or code == 0x3011  # ) ] of some scripts


@inlined
def _ending(codes: Codes, start: Number, stop: Number, last: Number) -> Number:
    code = codes[stop - 1]
    dots = stop - start >= 3 and code == 46 and codes[stop - 2] == 46 and codes[stop - 3] == 46
    clause = code == 59 or code == 0xFF1B or code == 0x061B or code == 0x1364 or code == 0x0387  # ; of some scripts
    comma = code == 44 or code == 0xFF0C or code == 0x3001 or code == 0x060C
    return 2 if dots or code == 0x2026 else 1 if last & END else 3 if clause else 4 if comma else 0


@compiled
def _worth(codes: Codes, starts: Any, flags: Any, worth: Any, unmarked: Any) -> Any:
    """The words that the units are worth, the units whose script does not mark sentences, the line ends."""
    total, no_marks, line_ends = len(starts) * WORD, 0, 0
    for unit in range(len(starts)):
        if flags[unit] & ALONE:
            code = min(codes[starts[unit]], np.uint32(len(worth) - 1))
            total += worth[code] - WORD
            no_marks += unmarked[code]
    for code in codes:
        line_ends += code == 10
    return total / WORD, no_marks, line_ends


_COUNTS = (
    "text_words", "spaced_words", "spaced_characters", "letter_words", "longest_word", "stop_words", "hash_signs",
    "ellipses", "braces", "sentences",
)  # fmt: skip


@inlined
def _speaks(code: Number, classes: Codes) -> Number:
    """Whether it is a letter of a script that names no files and addresses: there a mark between two letters ends a
    sentence, and the blank behind it was left out."""
    return 0x2AF < code < len(classes) and classes[code] & TEXT != 0 and classes[code] & ALONE == 0


@compiled
def _tally(
    codes: Codes, classes: Codes, lengths: Any, widths: Any, flags: Any, ends: Any, plain: Hashes, stops: Hashes
) -> Any:
    """The counts of `_COUNTS`, and the plain hashes of the units with text."""
    text = spaced = characters = letters = longest = stop_mask = hash_signs = ellipses = braces = sentences = 0
    plain_hashes = np.empty(len(plain), np.uint64)
    for unit in range(len(lengths)):
        kind = flags[unit]
        longest = max(longest, lengths[unit])
        letters += kind & LETTER != 0
        sentences += 0 < ends[unit] < 4
        if kind & TEXT:
            plain_hashes[text] = plain[unit]
            text += 1
            if not kind & ALONE:
                spaced += 1
                characters += widths[unit]
            for number in range(len(stops)):
                stop_mask |= (stops[number] == plain[unit]) << number
    for place in range(len(codes)):
        code = codes[place]
        hash_signs += code == 35
        braces += code == 123
        dots = code == 46 and place >= 2 and codes[place - 1] == 46 and codes[place - 2] == 46
        ellipses += dots or code == 0x2026
        if (code == 46 or code == 33 or code == 63) and 0 < place < len(codes) - 1:
            sentences += _speaks(codes[place - 1], classes) and _speaks(codes[place + 1], classes)
    stop_words = 0
    for number in range(len(stops)):
        stop_words += stop_mask >> number & 1
    counts = (text, spaced, characters, letters, longest, stop_words, hash_signs, ellipses, braces, sentences)
    return np.array(counts), plain_hashes[:text]


@compiled
def _blocks(
    hashes: Hashes, starts: Any, lengths: Lengths, widths: Lengths, flags: Any, ends: Any, breaks: Any, wrapped: bool
) -> Any:
    """(hashes, lengths) of the lines, the counts of `_LINE_COUNTS`, (hashes, lengths) of the paragraphs."""
    count = len(starts)
    gaps = np.zeros(count + 1, np.int32)  # a blank before a unit, where there is one
    line_starts, paragraph_starts = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    lines = paragraphs = 0
    for unit in range(count):
        gaps[unit] = unit > 0 and starts[unit] > starts[unit - 1] + lengths[unit - 1]
        if unit == 0 or breaks[unit] >= (2 if wrapped else 1):
            line_starts[lines] = unit
            lines += 1
        if unit == 0 or breaks[unit] >= 2:
            paragraph_starts[paragraphs] = unit
            paragraphs += 1
    characters = bullets = ellipses = terminals = short = 0
    line_starts[lines] = count
    joined = _joined(hashes, lengths, gaps, line_starts[:lines])
    for line in range(lines):
        first, stop = line_starts[line], line_starts[line + 1]
        width = -gaps[first]
        for unit in range(first, stop):
            width += widths[unit] + gaps[unit]
        characters += joined[1][line]
        bullets += flags[first] & BULLET != 0
        ellipses += ends[stop - 1] == 2
        terminals += ends[stop - 1] != 0 and ends[stop - 1] != 2
        short += width <= SHORT_LINE
    counts = np.array((lines, characters, bullets, ellipses, terminals, short))
    return joined, counts, _joined(hashes, lengths, gaps, paragraph_starts[:paragraphs])


_LINE_COUNTS = ("lines", "line_characters", "bullet_lines", "ellipsis_lines", "terminal_lines", "short_lines")


@compiled
def _joined(hashes: Hashes, lengths: Lengths, gaps: Lengths, starts: Any) -> Any:
    """(blocks,) hashes and lengths of the blocks that begin at these units, one blank between words."""
    joined, sizes, base = np.zeros(len(starts), np.uint64), np.zeros(len(starts), np.int32), np.uint64(_BASE)
    for block in range(len(starts)):
        stop = starts[block + 1] if block + 1 < len(starts) else len(hashes)
        value, size = np.uint64(0), 0
        for unit in range(starts[block], stop):
            value = value * base + hashes[unit]
            size += lengths[unit] + (gaps[unit] if unit > starts[block] else 0)
        joined[block], sizes[block] = value, size
    return joined, sizes


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
def _ngrams(words: Hashes, lengths: Lengths, characters: Number, scale: Number) -> Any:
    """(3,) shares of the commonest 2- to 4-gram, spaces included, and (6,) shares inside repeated 5- to 10-grams,
    spaces not. A run of n words is one of n · `scale` units."""
    count = len(words)
    tops, repeats = np.zeros(3), np.zeros(6)
    base, one = np.uint64(_BASE), np.uint64(1)
    prefix, before = np.zeros(count + 1, np.uint64), np.zeros(count + 1, np.int64)
    for number in range(count):
        prefix[number + 1] = prefix[number] * base + words[number]
        before[number + 1] = before[number] + lengths[number]
    size = _table_size(count)
    table, stamps, seen = np.zeros(size, np.uint64), np.zeros(size, np.int8), np.zeros(size, np.int32)
    mask, power, raised = np.uint64(size - 1), np.uint64(1), 0
    for length in range(2, 11):
        run = int(length * scale + 0.5)
        while raised < run:
            power *= base
            raised += 1
        best = number = inside = 0
        while number + run <= count:
            key = prefix[number + run] - prefix[number] * power
            place = _finish(key) & mask
            while stamps[place] == length and table[place] != key:
                place = (place + one) & mask
            known = stamps[place] == length
            width = before[number + run] - before[number]
            if length < 5:
                seen[place] = seen[place] + 1 if known else 1
                if known:
                    best = max(best, seen[place] * (width + length - 1))
            elif known:
                inside += width
                number += run - 1  # each character counts once
            if not known:
                table[place], stamps[place] = key, length
            number += 1
        if characters:
            if length < 5:
                tops[length - 2] = best / characters
            else:
                repeats[length - 5] = inside / characters
    return tops, repeats
