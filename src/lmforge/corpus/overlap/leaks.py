"""What of the held-out documents stands in training too: runs of `WINDOW` characters, found by a rolling hash.

    candidates for holding out ─▶ Windows: hashes of their runs, in a table     every other document ─▶ marks in it
                                                     └──────────▶ leaked spans of each candidate ◀──────────┘

A score on text that training holds verbatim measures memory, not prediction; Lee et al. 2022 ("Deduplicating training
data makes language models better"), section 6.2, find such overlap in most public validation sets. Runs are compared
as characters stand, so code and tables count as much as prose. Where the candidates have more runs than `MOST_WINDOWS`,
an equal share of all runs is compared, chosen by the hash itself: the same run is then chosen in every document.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import compiled
from lmforge.corpus.overlap.words import I64, MULTIPLIER, U64, mixed, power

WINDOW = 80  # characters
MOST_WINDOWS = 1 << 23  # compared at once: 200 MB of table and positions
_FILTER_BITS = 24  # a first look into 2 MB that stay in the processor's cache


def characters(text: str) -> NDArray[np.uint32]:
    """(L): the code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class Windows(NamedTuple):
    """The runs of the candidates: a table of their hashes, and where each candidate's runs lie in it."""

    table: U64  # open addressing in 2^k places; 0: empty
    filter: U64  # one bit for each value of a hash's top `_FILTER_BITS` bits
    mask: int  # a run is compared where the hash's low bits under this mask are 0
    positions: I64  # (runs): the character at which each run starts, document after document
    places: I64  # (runs): its place in the table
    ends: I64  # (documents): runs before the end of each document
    lengths: I64  # (documents): characters of each document

    @classmethod
    def of(cls, texts: Iterable[str]) -> Windows:
        """The runs of some documents."""
        found: list[tuple[I64, U64]] = []
        lengths: list[int] = []
        mask = held = 0
        for text in texts:
            codes = characters(text)
            lengths.append(codes.size)
            at, hashes = _runs(codes, WINDOW, np.uint64(mask << 1))
            found.append((at, hashes))
            held += at.size
            while held > MOST_WINDOWS:  # compare half as many from here on, and of those before
                mask = 2 * mask + 1
                found = [_under(each, mask) for each in found]
                held = sum(each.size for each, _ in found)
        positions = np.concatenate([at for at, _ in found]) if found else np.empty(0, np.int64)
        hashes = np.concatenate([each for _, each in found]) if found else np.empty(0, np.uint64)
        table, places, bits = _table(hashes, 1 << max(4, (2 * hashes.size).bit_length()))
        ends = np.cumsum([at.size for at, _ in found], dtype=np.int64)
        return cls(table, bits, mask, positions, places, ends, np.array(lengths, np.int64))

    def save(self, path: Path) -> None:
        """Write it, for the tasks to load."""
        np.savez(path, allow_pickle=False, **{name: np.asarray(value) for name, value in self._asdict().items()})

    @classmethod
    def load(cls, path: Path) -> Windows:
        """Read what `save` wrote."""
        with np.load(path) as file:
            fields = {name: file[name] for name in cls._fields}
        return cls(**{**fields, "mask": int(fields["mask"])})

    def mark(self, text: str, marks: NDArray[np.uint8]) -> None:
        """Set `marks` (places of the table) to 1 where `text` holds that run."""
        if self.positions.size:
            _mark(characters(text), WINDOW, np.uint64(self.mask << 1), self.table, self.filter, marks)

    def of_document(self, number: int) -> slice:
        """Where the runs of a document stand in `positions` and `places`."""
        return slice(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))

    def share(self, number: int, marks: NDArray[np.uint8]) -> float:
        """The share of a document's characters that lie in marked runs."""
        length = int(self.lengths[number])
        return sum(stop - start for start, stop in self.spans(number, marks)) / length if length else 0.0

    def spans(self, number: int, marks: NDArray[np.uint8]) -> list[tuple[int, int]]:
        """The characters of a document that lie in marked runs, as [start, stop) in ascending order."""
        which = self.of_document(number)
        at, marked = self.positions[which], marks[self.places[which]] > 0
        if not marked.any():
            return []
        # Neighbouring compared runs that are both marked are one span: between them nothing says otherwise.
        edges = np.diff(marked.astype(np.int8), prepend=0, append=0)
        firsts, lasts = at[np.flatnonzero(edges == 1)], at[np.flatnonzero(edges == -1) - 1] + WINDOW
        merged: list[tuple[int, int]] = []
        for start, stop in zip(firsts.tolist(), lasts.tolist(), strict=True):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], stop)
            else:
                merged.append((start, stop))
        return merged


def _under(runs: tuple[I64, U64], mask: int) -> tuple[I64, U64]:
    at, hashes = runs
    kept = hashes & np.uint64(mask << 1) == 0
    return at[kept], hashes[kept]


@compiled
def _runs(codes: Any, window: Any, mask: Any) -> Any:
    """The starts and hashes of the runs of `window` characters whose hash is 0 under `mask`."""
    size = len(codes) - window + 1
    if size <= 0:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    at, hashes, count = np.empty(size, np.int64), np.empty(size, np.uint64), 0
    factor, rolling = power(window), np.uint64(0)
    for index in range(len(codes)):
        rolling = rolling * MULTIPLIER + np.uint64(codes[index]) + np.uint64(1)
        if index >= window:
            rolling -= (np.uint64(codes[index - window]) + np.uint64(1)) * factor
        if index >= window - 1:
            key = mixed(rolling) | np.uint64(1)
            if key & mask == 0:
                at[count], hashes[count] = index - window + 1, key
                count += 1
    return at[:count], hashes[:count]


@compiled
def _table(hashes: Any, places: Any) -> Any:
    table, where = np.zeros(places, np.uint64), np.empty(len(hashes), np.int64)
    bits = np.zeros(1 << (_FILTER_BITS - 6), np.uint64)
    for index in range(len(hashes)):
        key = hashes[index]
        place = key & np.uint64(places - 1)
        while table[place] != 0 and table[place] != key:
            place = (place + np.uint64(1)) & np.uint64(places - 1)
        table[place], where[index] = key, place
        top = key >> np.uint64(64 - _FILTER_BITS)
        bits[top >> np.uint64(6)] |= np.uint64(1) << (top & np.uint64(63))
    return table, where, bits


@compiled
def _mark(codes: Any, window: Any, mask: Any, table: Any, bits: Any, marks: Any) -> Any:
    places = np.uint64(len(table) - 1)
    factor, rolling = power(window), np.uint64(0)
    for index in range(len(codes)):
        rolling = rolling * MULTIPLIER + np.uint64(codes[index]) + np.uint64(1)
        if index >= window:
            rolling -= (np.uint64(codes[index - window]) + np.uint64(1)) * factor
        if index < window - 1:
            continue
        key = mixed(rolling) | np.uint64(1)
        top = key >> np.uint64(64 - _FILTER_BITS)
        if key & mask != 0 or not bits[top >> np.uint64(6)] >> (top & np.uint64(63)) & np.uint64(1):
            continue
        place = key & places
        while table[place] != 0:
            if table[place] == key:
                marks[place] = 1
                break
            place = (place + np.uint64(1)) & places
