"""Interpolated Kneser-Ney n-gram language model of bytes: the baseline that a network has to beat.

    documents ──▶ counts of n-grams ──▶ continuation counts of orders n-1 … 1 ──▶ per order: shares and weight of the
    order below

For a history h of k-1 symbols and a next symbol w, order k gives (Chen & Goodman 1998, "An Empirical Study of Smoothing
Techniques for Language Modeling", TR-10-98, section 2.7 in its interpolated form; with three discounts, section 3)

    p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h·) + λ(h) p_{k-1}(w | h'),    λ(h) = Σ_w D(c(hw)) / c(h·)

where h' is h without its oldest symbol, c is the raw count at the highest order and the number of distinct symbols seen
before hw at the lower ones, and p_0 = 1/257. A history never seen leaves everything to the order below. The next symbol
is one of 256 bytes or the end of the document; a document begins with n-1 begin symbols, which count as context (and as
a symbol seen before) and are never predicted. No n-gram crosses from one document into another.

A history is packed into a uint64, 9 bits a symbol, so 7 symbols at most: hence orders 1 to 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from lmforge.errors import InputError

MAX_ORDER = 8
ALPHABET = 257  # what can be predicted: 256 bytes and the end of the document
END, BEGIN = 256, 257
BITS = 9
CHUNK = 4_000_000  # symbols counted at a time; counting takes about 70 bytes for each
SCORED_AT_ONCE = 500_000  # symbols scored at a time

Discounts = tuple[float, float, float]  # subtracted from counts of 1, of 2, of 3 and more
Codes = npt.NDArray[np.uint64]
Symbols = npt.NDArray[np.uint16]
Reals = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counts:
    """N-grams of one order with their counts.

    `histories` (H,): the distinct packed histories, ascending. `ngrams` (N,), ascending: index into `histories` << 9 |
    next symbol, so that even 8-grams fit 64 bits. `counts` (N,).
    """

    histories: Codes
    ngrams: Codes
    counts: Integers


@dataclass(frozen=True)
class _Level:
    """One order, ready to score: `shares` (N,) is the discounted share of each n-gram, `lower` (H,) is λ of each
    history."""

    histories: Codes
    ngrams: Codes
    shares: Reals
    lower: Reals


class KneserNey:
    """A trained model. Make one with `KneserNey.train`.

    Attributes:
        order: n; a byte is predicted from the n-1 before it.
        modified: three discounts per order instead of one.
        discounts: for orders 1 … n, what is subtracted from counts of 1, of 2, and of 3 or more.
    """

    def __init__(self, order: int, modified: bool, levels: list[_Level], discounts: list[Discounts]) -> None:
        self.order, self.modified, self.discounts = order, modified, discounts
        self._levels = levels

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything of it, as named arrays; `of_arrays` makes it again."""
        levels = {
            f"{name} {number}": array
            for number, level in enumerate(self._levels)
            for name, array in vars(level).items()
        }
        return {"discounts": np.array(self.discounts), "modified": np.array(self.modified), **levels}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> KneserNey:
        """The model that gave these `arrays`."""
        discounts = [(float(one), float(two), float(three)) for one, two, three in arrays["discounts"]]
        names = [field.name for field in fields(_Level)]
        levels = [_Level(**{name: arrays[f"{name} {number}"] for name in names}) for number in range(len(discounts))]
        return cls(len(discounts), bool(arrays["modified"]), levels, discounts)

    @classmethod
    def train(cls, documents: Iterable[bytes], order: int = 5, modified: bool = False) -> KneserNey:
        """Count and discount. Memory grows with the distinct n-grams, not with the text, which is read once.

        Raises:
            InputError: `order` is not in 1..8, or there is no document.
        """
        if not 1 <= order <= MAX_ORDER:
            raise InputError(f"n-gram order {order}: only 1 to {MAX_ORDER} fit the packed keys; choose one of these")
        counts: _Counts | None = None
        for history, symbol in _chunks(documents, order, ends=True, size=CHUNK):
            chunk_counts = _count(history, symbol, order)
            counts = chunk_counts if counts is None else _merge(counts, chunk_counts)
        if counts is None:
            raise InputError(
                "n-gram model: there is no document to train on; check that the training split is not empty"
            )
        levels, discounts = [], []
        for length in range(order, 0, -1):
            discounts.append(discounts_of(counts.counts, modified))
            levels.append(_discounted(counts, discounts[-1]))
            if length > 1:
                counts = _continuations(counts, length)
        return cls(order, modified, levels[::-1], discounts[::-1])

    def log2_probabilities(self, document: bytes) -> Reals:
        """log2 of the probability of each byte of `document` given those before it: (len(document),); all finite.

        That the document ends after its last byte is not among them.
        """
        chunks = _chunks([document], self.order, ends=False, size=SCORED_AT_ONCE)
        return np.concatenate([np.zeros(0), *(np.log2(self._probabilities(*chunk)) for chunk in chunks)])

    def log2_whole(self, documents: Sequence[bytes]) -> Reals:
        """log2 of the probability of each document whole, its end included: (len(documents),)."""
        chunks = _chunks(documents, self.order, ends=True, size=SCORED_AT_ONCE)
        log2 = np.concatenate([np.zeros(0), *(np.log2(self._probabilities(*chunk)) for chunk in chunks)])
        return (
            np.add.reduceat(log2, np.cumsum([0, *(len(document) + 1 for document in documents[:-1])]))
            if documents
            else log2
        )

    def bits_per_byte(self, documents: Iterable[bytes]) -> tuple[float, int]:
        """Bits spent on the bytes of `documents` over their number, and that number. The end of a document costs
        nothing.

        Raises:
            InputError: the documents hold no byte.
        """
        bits, scored = 0.0, 0
        for history, symbol in _chunks(documents, self.order, ends=False, size=SCORED_AT_ONCE):
            bits -= float(np.log2(self._probabilities(history, symbol)).sum())
            scored += len(symbol)
        if not scored:
            raise InputError(
                "n-gram model: the documents to score hold no byte; check that the held-out split is not empty"
            )
        return bits / scored, scored

    def distribution(self, document: bytes) -> Reals:
        """Probabilities of what follows a document that so far reads `document`: (257,), the 256 bytes and, last, its
        end."""
        *_, (history, _) = _chunks([document], self.order, ends=True, size=CHUNK)
        return self._probabilities(np.repeat(history[-1:], ALPHABET), np.arange(ALPHABET, dtype=np.uint16))

    def _probabilities(self, history: Codes, symbol: Symbols) -> Reals:
        """p_n(symbol | history), both (N,), of packed histories: this file's equation from order 1 upwards."""
        probability = np.full(len(symbol), 1 / ALPHABET)
        for length, level in enumerate(self._levels, start=1):
            index, known = _find(level.histories, history & _mask(length - 1))
            place, seen = _find(level.ngrams, (index << BITS | symbol).astype(np.uint64))
            probability *= np.where(known, level.lower[index], 1.0)
            probability += np.where(known & seen, level.shares[place], 0.0)
        return probability


def _mask(symbols: int) -> np.uint64:
    """Keeps the newest `symbols` symbols of a packed history."""
    return np.uint64((1 << BITS * symbols) - 1)


def _find(table: Codes, wanted: Codes) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """For each of `wanted` its index in the ascending `table`, and whether it is there (the index is valid in either
    case)."""
    index = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return index, table[index] == wanted


def _chunks(documents: Iterable[bytes], order: int, ends: bool, size: int) -> Iterator[tuple[Codes, Symbols]]:
    """(packed history, symbol), both (N,), of every symbol of the documents in turn, in chunks of N near `size`.

    With `ends`, the end of each document is one of the symbols.
    """
    pieces: list[Symbols] = []
    held = 0
    for document in documents:
        symbols = np.full(order - 1 + len(document) + ends, END, np.uint16)
        symbols[: order - 1] = BEGIN
        symbols[order - 1 : order - 1 + len(document)] = np.frombuffer(document, np.uint8)
        # A document longer than a chunk is cut; each piece starts with the order-1 symbols before it, so no n-gram is
        # lost.
        for start in range(0, len(symbols) - (order - 1), size):
            pieces.append(symbols[start : start + size + order - 1])
            held += len(pieces[-1])
            if held >= size:
                yield _pack(pieces, order)
                pieces, held = [], 0
    if pieces:
        yield _pack(pieces, order)


def _pack(pieces: list[Symbols], order: int) -> tuple[Codes, Symbols]:
    """The n-grams of pieces that each start with order-1 symbols of context: packed histories and next symbols, both
    (N,)."""
    symbols = np.concatenate(pieces)
    starts = np.cumsum([0] + [len(piece) for piece in pieces[:-1]])
    history = np.zeros(len(symbols), np.uint64)
    for back in range(1, order):
        history[back:] |= symbols[:-back].astype(np.uint64) << np.uint64(BITS * (back - 1))
    predicted = np.ones(len(symbols), bool)
    predicted[(starts[:, None] + np.arange(order - 1)).ravel()] = False
    return history[predicted], symbols[predicted]


def _count(history: Codes, symbol: Symbols, order: int) -> _Counts:
    """How often each n-gram of this order occurs; `history` and `symbol` (N,), in any order."""
    if order < MAX_ORDER:  # the whole n-gram fits 64 bits; sorting it is 4 times as fast as the indirect sort below
        keys = np.sort(history << np.uint64(BITS) | symbol)
        histories, index = _distinct(keys >> np.uint64(BITS))
        keys = index << np.uint64(BITS) | keys & _mask(1)
    else:
        by_history = np.argsort(history)
        histories, index = _distinct(history[by_history])
        keys = np.sort(index << np.uint64(BITS) | symbol[by_history])
    starts = np.flatnonzero(_firsts(keys))
    return _Counts(histories, keys[starts], np.diff(starts, append=len(keys)))


def _distinct(ordered: Codes) -> tuple[Codes, Codes]:
    """The distinct values of an ascending array (N,), and for each of its elements (N,) which of them it is.

    (Comparing neighbours is many times as fast as numpy's hashing `unique`.)
    """
    first = _firsts(ordered)
    return ordered[first], np.cumsum(first).astype(np.uint64) - np.uint64(1)


def _firsts(ordered: Codes) -> npt.NDArray[np.bool_]:
    """True where an ascending array starts a new value."""
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first


def _merge(one: _Counts, other: _Counts) -> _Counts:
    """The counts of both together."""
    histories = np.concatenate([one.histories, other.histories])
    histories.sort(kind="stable")
    histories = histories[_firsts(histories)]
    keys = []
    for counts in (one, other):
        index = np.searchsorted(histories, counts.histories).astype(np.uint64)
        keys.append(index[counts.ngrams >> np.uint64(BITS)] << np.uint64(BITS) | counts.ngrams & _mask(1))
    ngrams = np.concatenate(keys)
    order = np.argsort(ngrams, kind="stable")  # two ascending runs, which this kind merges
    ngrams = ngrams[order]
    starts = np.flatnonzero(_firsts(ngrams))
    return _Counts(
        histories, ngrams[starts], np.add.reduceat(np.concatenate([one.counts, other.counts])[order], starts)
    )


def _continuations(counts: _Counts, length: int) -> _Counts:
    """From the n-grams of order `length`, those of the order below, each counted once per distinct symbol seen before
    it."""
    history = counts.histories[counts.ngrams >> np.uint64(BITS)] & _mask(length - 2)
    return _count(history, (counts.ngrams & _mask(1)).astype(np.uint16), length - 1)


def discounts_of(counts: Integers, modified: bool) -> Discounts:
    """What to subtract, estimated from how many n-grams have count 1, 2, 3, 4 (Chen & Goodman 1998, sections 2.6 and
    3).

    Where a small or odd text leaves an estimate undefined or out of range, 0.5 stands for the single discount and (0.5,
    1, 1.5) for the three: a discount of 0 would give some bytes no probability at all.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    if not modified:
        single = n1 / (n1 + 2 * n2) if n1 else 0.5
        return (single, single, single)
    if n1 and n2 and n3:
        base = n1 / (n1 + 2 * n2)
        three = (1 - 2 * base * n2 / n1, 2 - 3 * base * n3 / n2, 3 - 4 * base * n4 / n3)
        if all(0 < discount <= count for count, discount in enumerate(three, start=1)):
            return three
    return (0.5, 1.0, 1.5)


def _discounted(counts: _Counts, discounts: Discounts) -> _Level:
    """The two terms of the equation of this file, for every n-gram and every history of one order."""
    subtracted = np.array((0.0, *discounts))[np.minimum(counts.counts, 3)]
    history = counts.ngrams >> np.uint64(BITS)
    starts = np.flatnonzero(_firsts(history))  # every history has an n-gram, so the i-th run belongs to history i
    totals = np.add.reduceat(counts.counts, starts)
    lower = np.add.reduceat(subtracted, starts) / totals
    return _Level(counts.histories, counts.ngrams, (counts.counts - subtracted) / totals[history], lower)
