"""Piece → how often it occurs: a hash table that compiled loops fill, and the sorted runs on disk it is emptied to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import Number, compiled, inlined
from lmforge.errors import LmforgeError
from lmforge.tokens.pretokenize import Bytes, classes_for, fingerprint, joined, piece_end

Integers = NDArray[np.int64]
Short = NDArray[np.int32]
ENTRY = 32  # bytes of a piece's entry in a table beside its own bytes: print, end, count, and two slots of 4


@dataclass(frozen=True)
class Pieces:
    """Distinct pieces: their bytes one after another, where each ends, how often it occurs (and a fingerprint,
    `prints`)."""

    data: Bytes
    ends: Integers
    counts: Integers
    prints: Integers

    def __len__(self) -> int:
        return len(self.ends)

    def pairs(self) -> Iterator[tuple[bytes, int]]:
        """(piece, count), in the order they lie."""
        start = 0
        for end, count in zip(self.ends.tolist(), self.counts.tolist(), strict=True):
            yield self.data[start:end].tobytes(), count
            start = end

    def chosen(self, which: NDArray[np.intp]) -> Pieces:
        """Those at the places `which`, in that order."""
        starts = np.concatenate([[0], self.ends])[which]
        sizes = self.ends[which] - starts
        ends = np.cumsum(sizes)
        data = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        _gather(self.data, starts, ends, data)
        return Pieces(data, ends, self.counts[which], self.prints[which])


@compiled
def _gather(source: Bytes, starts: Integers, ends: Integers, into: Bytes) -> None:
    at = 0
    for number in range(len(ends)):
        offset = starts[number] - at
        while at < ends[number]:
            into[at] = source[at + offset]
            at += 1


@inlined
def _find(
    text: Bytes, start: Number, stop: Number, seen: Number, slots: Short, data: Bytes, ends: Integers, prints: Integers
) -> Number:
    """The slot of a piece, or the empty one where it would go."""
    mask = len(slots) - 1
    slot = seen & mask
    while slots[slot] >= 0:
        entry = slots[slot]
        if prints[entry] == seen:
            first = ends[entry] - (stop - start)
            at = start
            while at < stop and first >= 0 and data[first + at - start] == text[at]:
                at += 1
            if at == stop and first == (ends[entry - 1] if entry else 0):
                break
        slot = (slot + 1) & mask
    return slot


@inlined
def _add(
    text: Bytes,
    start: Number,
    stop: Number,
    seen: Number,
    weight: Number,
    slots: Short,
    data: Bytes,
    ends: Integers,
    counts: Integers,
    prints: Integers,
    used: Integers,
) -> None:
    """Count one piece; `used` holds (entries, bytes) and there is room for one more of each."""
    slot = _find(text, start, stop, seen, slots, data, ends, prints)
    entry = slots[slot]
    if entry >= 0:
        counts[entry] += weight
    else:
        entry = used[0]
        slots[slot] = entry
        for at in range(start, stop):
            data[used[1] + at - start] = text[at]
        used[0] += 1
        used[1] += stop - start
        ends[entry], counts[entry], prints[entry] = used[1], weight, seen


@compiled
def _count_text(
    text: Bytes,
    start: Number,
    stop: Number,
    classes: Bytes,
    superwords: bool,
    slots: Short,
    data: Bytes,
    ends: Integers,
    counts: Integers,
    prints: Integers,
    used: Integers,
) -> Number:
    """Count the pieces of one text; gives back where it stopped: before `stop` when the table is full."""
    at = start
    while at < stop:
        end = piece_end(text, at, stop, classes, superwords)
        if used[0] + 1 >= len(ends) or used[1] + end - at > len(data):
            break
        _add(text, at, end, fingerprint(text, at, end), 1, slots, data, ends, counts, prints, used)
        at = end
    return at


@compiled
def _count_pieces(
    text: Bytes,
    text_ends: Integers,
    weights: Integers,
    first: Number,
    slots: Short,
    data: Bytes,
    ends: Integers,
    counts: Integers,
    prints: Integers,
    used: Integers,
) -> Number:
    """Count whole pieces, each with its weight, from number `first`; gives back the number it stopped at."""
    for number in range(first, len(text_ends)):
        start = text_ends[number - 1] if number else 0
        end = text_ends[number]
        if used[0] + 1 >= len(ends) or used[1] + end - start > len(data):
            return number
        _add(text, start, end, fingerprint(text, start, end), weights[number], slots, data, ends, counts, prints, used)
    return len(text_ends)


@compiled
def _place(prints: Integers, entries: Number, slots: Short) -> None:
    mask = len(slots) - 1
    for entry in range(entries):
        slot = prints[entry] & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = entry


class PieceTable:
    """Piece → count, growing by doubling up to `room` bytes; `spill` is called with what it holds when it is full."""

    def __init__(self, room: int, folder: Path | None) -> None:
        self.room, self.folder = room, folder
        self.runs: list[Path] = []
        self._new(1 << 8, 1 << 12)

    def _new(self, entries: int, size: int) -> None:
        self.slots = np.full(2 * entries, -1, dtype=np.int32)
        self.data = np.empty(size, dtype=np.uint8)
        self.ends, self.counts, self.prints = (np.empty(entries, dtype=np.int64) for _ in range(3))
        self.used = np.zeros(2, dtype=np.int64)

    @property
    def _arrays(self) -> tuple[Short, Bytes, Integers, Integers, Integers, Integers]:
        return self.slots, self.data, self.ends, self.counts, self.prints, self.used

    def add_texts(self, texts: list[str], superwords: bool) -> None:
        data, ends = joined(texts)
        classes = classes_for(data, marks=True)
        start = 0
        for end in ends.tolist():
            while (start := _count_text(data, start, end, classes, superwords, *self._arrays)) < end:
                self._make_room(end - start)

    def add_pieces(self, data: Bytes, ends: Integers, weights: Integers) -> None:
        number = 0
        while (number := _count_pieces(data, ends, weights, number, *self._arrays)) < len(ends):
            self._make_room(int(ends[number] - (ends[number - 1] if number else 0)))

    def _make_room(self, size: int) -> None:
        """Double what is full; where that exceeds `room`, write a run and begin again."""
        entries, held = self.used.tolist()
        wanted = len(self.ends) * (2 if entries + 1 >= len(self.ends) else 1)
        space = len(self.data) * (2 if held + min(size, 1 << 20) > len(self.data) else 1)
        if self.folder is not None and wanted * ENTRY + space > self.room and entries:
            self.runs.append(self._spill())
            self._new(len(self.ends), len(self.data))
            return
        if wanted > len(self.ends):
            for name in ("ends", "counts", "prints"):  # one by one, each old one given back before the next
                setattr(
                    self,
                    name,
                    np.concatenate([getattr(self, name)[:entries], np.empty(wanted - entries, dtype=np.int64)]),
                )
            self.slots = self.slots[:0]
            self.slots = np.full(2 * wanted, -1, dtype=np.int32)
            _place(self.prints, entries, self.slots)
        if space > len(self.data) or size > len(self.data):
            self.data = np.concatenate([self.data[:held], np.empty(max(space, held + size) - held, dtype=np.uint8)])

    def held(self) -> Pieces:
        """What it holds, in the order in which it came."""
        entries, size = self.used.tolist()
        return Pieces(self.data[:size], self.ends[:entries], self.counts[:entries], self.prints[:entries])

    def pieces(self) -> Pieces:
        """What it holds, in the order of the fingerprints."""
        held = self.held()
        return held.chosen(np.argsort(held.prints, kind="stable"))

    def _spill(self) -> Path:
        assert self.folder is not None
        handle, name = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        write_run(Path(name), self.pieces())
        return Path(name)


def write_run(path: Path, pieces: Pieces) -> None:
    try:
        for kind in ("data", "ends", "counts", "prints"):
            np.save(path.with_suffix(f".{kind}.npy"), getattr(pieces, kind))
    except OSError as error:
        raise LmforgeError(
            f"{path.parent}: could not be written ({error.strerror or error}); free disk space, set TMPDIR to a "
            "larger disk or raise tokens.max_ram"
        ) from error


def open_run(path: Path) -> Pieces:
    return Pieces(
        *(np.load(path.with_suffix(f".{kind}.npy"), mmap_mode="r") for kind in ("data", "ends", "counts", "prints"))
    )


def part_of_run(run: Pieces, low: int, high: int) -> tuple[Bytes, Integers, Integers]:
    """The pieces of a run with fingerprints from `low` to below `high`: bytes, ends, counts."""
    first, last = np.searchsorted(run.prints, [low, high]).tolist()
    start = int(run.ends[first - 1]) if first else 0
    ends = np.asarray(run.ends[first:last]) - start
    return (
        np.asarray(run.data[start : start + (int(ends[-1]) if len(ends) else 0)]),
        ends,
        np.asarray(run.counts[first:last]),
    )
