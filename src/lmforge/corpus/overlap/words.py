"""A text as the stream of its letters: what stays the same when it is wrapped, cased or punctuated otherwise.

Letters are lower-cased letters and digits, with their marks, in the compatibility composition of Unicode (so that a
full-width letter is the letter); everything else only separates words, and an apostrophe not even that ("don't" is one
word). In scripts without spaces each sign is a word of its own. Amounts are told in English letters: a sign of Chinese,
Japanese or Korean is worth two. Compiled by numba at first use and kept in its cache.
"""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import compiled
from lmforge.corpus import scripts
from lmforge.corpus.scripts import ALONE, MARK, TEXT, WIDE

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_VALUE: U64 = np.random.default_rng(0x1EAF).integers(1, 2**63, 256, dtype=np.uint64)  # a random number for each letter
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Words(NamedTuple):
    """The letters of one text, L of them in W words."""

    prefix: U64  # (L + 1): polynomial hash of the first i letters, modulo 2^64
    starts: I64  # (W): the letter at which each word starts
    hashes: U64  # (W): hash of each word
    lines: I64  # (lines): letters before the end of each line
    amounts: I64  # (L + 1): what the first i letters are worth in English ones


def read_words(text: str) -> Words:
    """The letters and words of `text`; about 300 MB/s of ASCII."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).lower()
        return Words(*_read(scripts.codes(text), scripts.table(), _VALUE))
    return Words(*_read(np.frombuffer(text.encode(), dtype=np.uint8), scripts.table(), _VALUE))


@compiled
def mixed(value: Any) -> Any:
    """Spread 64 bits over all 64 (the finaliser of MurmurHash3)."""
    value = np.uint64(value)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


@compiled
def _read(codes: Any, classes: Any, values: Any) -> Any:
    size = len(codes)
    prefix, starts, amounts = np.empty(size + 1, np.uint64), np.empty(size, np.int64), np.empty(size + 1, np.int64)
    hashes, lines = np.empty(size, np.uint64), np.empty(size + 1, np.int64)
    letters, words, ends, amount, before = 0, 0, 0, 0, np.uint32(0)
    prefix[0] = total = word = np.uint64(0)
    amounts[0] = 0
    inside = False
    for code in codes:
        entry = classes[code] if code < len(classes) else np.uint32(0)
        if entry & TEXT:
            if not inside or ((entry | before) & ALONE and not entry & MARK):
                if words:
                    hashes[words - 1] = mixed(word)
                starts[words] = letters
                words += 1
                inside, word = True, np.uint64(0)
            if not entry & MARK:
                before = entry
            low = entry >> 8
            value = values[low] if low < 256 else mixed(low)
            word = word * MULTIPLIER + value
            total = total * MULTIPLIER + value
            letters += 1
            amount += 1 + (entry & WIDE != 0)
            prefix[letters], amounts[letters] = total, amount
        elif code != 39 and code != 0x2018 and code != 0x2019 and code != 0x02BC:  # an apostrophe parts no word
            inside = False
            if code == 10:
                lines[ends] = letters
                ends += 1
    if words:
        hashes[words - 1] = mixed(word)
    lines[ends] = letters
    return prefix[: letters + 1], starts[:words], hashes[:words], lines[: ends + 1], amounts[: letters + 1]


@compiled
def power(exponent: Any) -> Any:
    """`MULTIPLIER` to the power of `exponent`, modulo 2^64."""
    result, base = np.uint64(1), MULTIPLIER
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


@compiled
def run_hash(prefix: Any, start: Any, stop: Any) -> Any:
    """Hash of the letters from `start` to `stop`; never 0."""
    return mixed(prefix[stop] - prefix[start] * power(stop - start)) | np.uint64(1)
