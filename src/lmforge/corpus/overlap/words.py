"""A text as the stream of its letters: what stays the same when it is wrapped, cased or punctuated otherwise.

Letters are lower-cased letters and digits; everything else only separates words, and an apostrophe not even that
("don't" is one word). A sign of Chinese, Japanese or Korean is a word of its own. Compiled by numba at first use and
kept in its cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import compiled

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_SEPARATOR, _LETTER, _NOTHING = 0, 1, 2
_KIND = np.zeros(256, dtype=np.uint8)
_KIND[[*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 256)]] = _LETTER
_KIND[ord("'")] = _NOTHING
_VALUE: U64 = np.random.default_rng(0x1EAF).integers(1, 2**63, 256, dtype=np.uint64)  # a random number for each byte
_VALUE[65:91] = _VALUE[97:123]
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Words(NamedTuple):
    """The letters of one text, L of them in W words."""

    prefix: U64  # (L + 1): polynomial hash of the first i letters, modulo 2^64
    starts: I64  # (W): the letter at which each word starts
    hashes: U64  # (W): hash of each word
    lines: I64  # (lines): letters before the end of each line


def read_words(text: str) -> Words:
    """The letters and words of `text`; about 300 MB/s."""
    data = text.encode("utf-8", "replace") if text.isascii() else text.lower().encode("utf-8", "replace")
    return Words(*_read(np.frombuffer(data, dtype=np.uint8), _KIND, _VALUE))


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
def _read(data: Any, kinds: Any, values: Any) -> Any:
    size = len(data)
    prefix, starts = np.empty(size + 1, np.uint64), np.empty(size, np.int64)
    hashes, lines = np.empty(size, np.uint64), np.empty(size + 1, np.int64)
    letters, words, ends, at = 0, 0, 0, 0
    prefix[0] = total = word = np.uint64(0)
    inside = False
    while at < size:
        byte = data[at]
        kind, step, alone = kinds[byte], 1, False
        if byte >= 0xC2:  # the punctuation beyond ASCII: Latin-1's, general, CJK
            if byte == 0xC2:
                kind, step = 0, 2
            elif byte == 0xE2 and at + 2 < size and data[at + 1] <= 0x83:
                # U+2018, U+2019: apostrophes
                kind, step = (2 if data[at + 1] == 0x80 and (data[at + 2] & 0xFE) == 0x98 else 0), 3
            elif byte == 0xE3 and at + 1 < size and data[at + 1] == 0x80:
                kind, step = 0, 3
            else:
                alone = 0xE3 <= byte <= 0xE9
        if kind == 1:
            if alone or not inside:
                if words:
                    hashes[words - 1] = mixed(word)
                starts[words] = letters
                words += 1
                inside, word = True, np.uint64(0)
            value = values[byte]
            word = word * MULTIPLIER + value
            total = total * MULTIPLIER + value
            letters += 1
            prefix[letters] = total
        elif kind == 0:
            inside = False
            if byte == 10:
                lines[ends] = letters
                ends += 1
        at += step
    if words:
        hashes[words - 1] = mixed(word)
    lines[ends] = letters
    return prefix[: letters + 1], starts[:words], hashes[:words], lines[: ends + 1]


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
