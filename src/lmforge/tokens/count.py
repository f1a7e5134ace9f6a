"""How often each piece occurs, within a memory budget: tables filled by threads, emptied to disk when full, put
together at the end.

    texts ─batches─▶ thread: table piece → count ──full──▶ run on disk, in the order of fingerprints ─┐
                     thread: …                                                                       ├─ range by range
                     ─▶ Pieces
                                                                                                     ┘
Counts are 64-bit. What comes out is the same for any number of threads, any batches and any budget that holds all
pieces; where the distinct pieces alone exceed it, the rarest are left out, of equally rare ones those with the highest
fingerprints, so that too depends on nothing but texts and budget.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import Number, compiled, inlined
from lmforge.errors import InputError, LmforgeError
from lmforge.tokens.pretokenize import Bytes, as_bytes, classes_for, fingerprint, joined, piece_end

Integers = NDArray[np.int64]
Short = NDArray[np.int32]
BATCH_BYTES = 1 << 18
Item = TypeVar("Item", str, bytes)
LEAST_ROOM = 1 << 20  # bytes of a table, whatever the budget
_ENTRY = 32  # bytes of a piece's entry in a table beside its own bytes: print, end, count, and two slots of 4


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


class _Table:
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
        classes = classes_for(data)
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
        if self.folder is not None and wanted * _ENTRY + space > self.room and entries:
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
        found = self.held()
        return found.chosen(np.argsort(found.prints, kind="stable"))

    def _spill(self) -> Path:
        assert self.folder is not None
        handle, name = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        _write_run(Path(name), self.pieces())
        return Path(name)


def _write_run(path: Path, pieces: Pieces) -> None:
    try:
        for kind in ("data", "ends", "counts", "prints"):
            np.save(path.with_suffix(f".{kind}.npy"), getattr(pieces, kind))
    except OSError as error:
        raise LmforgeError(
            f"{path.parent}: could not be written ({error.strerror or error}); free disk space, set TMPDIR to a "
            "larger disk or raise tokens.max_ram"
        ) from error


def _open_run(path: Path) -> Pieces:
    return Pieces(
        *(np.load(path.with_suffix(f".{kind}.npy"), mmap_mode="r") for kind in ("data", "ends", "counts", "prints"))
    )


def _part(run: Pieces, low: int, high: int) -> tuple[Bytes, Integers, Integers]:
    """The pieces of a run with fingerprints from `low` to below `high`: bytes, ends, counts."""
    first, last = np.searchsorted(run.prints, [low, high]).tolist()
    start = int(run.ends[first - 1]) if first else 0
    ends = np.asarray(run.ends[first:last]) - start
    return (
        np.asarray(run.data[start : start + (int(ends[-1]) if len(ends) else 0)]),
        ends,
        np.asarray(run.counts[first:last]),
    )


def count_pieces(
    texts: Iterable[str], superwords: bool = False, max_ram: int = 1 << 62, threads: int = 1, weight_of: int = 24
) -> tuple[Pieces, int]:
    """(the pieces of `texts`, the count below which some were left out or 0), in at most about `max_ram` bytes.

    `weight_of` is what the caller will need in memory for a byte of a distinct piece; pieces are kept while that fits
    in `max_ram`.

    Raises:
        LmforgeError: the disk of temporary files is full.
    """
    with tempfile.TemporaryDirectory(prefix="lmforge-count-") as name:
        tables = [_Table(max(LEAST_ROOM, max_ram // (2 * threads)), Path(name)) for _ in range(threads)]
        _fill(tables, texts, superwords)
        return _together(tables, Path(name), max_ram, weight_of)


def weighted_pieces(pairs: Iterable[tuple[bytes, int]]) -> Pieces:
    """Pieces with counts that were made elsewhere; the counts of equal pieces add up.

    Raises:
        InputError: a count that is not between 1 and 2^62.
    """
    table = _Table(1 << 62, None)
    given = list(pairs)
    wrong = next((pair for pair in given if not 0 < pair[1] < 1 << 62), None)
    if wrong:
        raise InputError(
            f"piece {wrong[0]!r}: its count {wrong[1]} is not between 1 and 2^62; leave it out or scale the counts"
        )
    ends = np.cumsum([len(piece) for piece, _ in given], dtype=np.int64)
    table.add_pieces(
        as_bytes(b"".join(piece for piece, _ in given)), ends, np.array([count for _, count in given], dtype=np.int64)
    )
    return table.pieces()


def _fill(tables: list[_Table], texts: Iterable[str], superwords: bool) -> None:
    """Hand batches of texts to one thread a table."""
    if len(tables) == 1:
        for batch in batches(texts, BATCH_BYTES):
            tables[0].add_texts(batch, superwords)
        return
    waiting: queue.Queue[list[str] | None] = queue.Queue(maxsize=1)
    failed: list[BaseException] = []

    def work(table: _Table) -> None:
        while (batch := waiting.get()) is not None:
            try:
                if not failed:
                    table.add_texts(batch, superwords)
            except BaseException as error:
                failed.append(error)
            del batch

    workers = [threading.Thread(target=work, args=(table,), daemon=True) for table in tables]
    for worker in workers:
        worker.start()
    try:
        for batch in batches(texts, BATCH_BYTES):
            waiting.put(batch)
    finally:
        for _ in workers:
            waiting.put(None)
        for worker in workers:
            worker.join()
    if failed:
        raise failed[0]


def batches(items: Iterable[Item], least: int) -> Iterator[list[Item]]:
    """Lists of items in their order, each list ended by the item that brings the sum of their lengths to `least`."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item)
        if size >= least:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _together(tables: list[_Table], folder: Path, max_ram: int, weight_of: int) -> tuple[Pieces, int]:
    """One list of pieces out of all tables and their runs, as many as fit."""
    runs = [_open_run(path) for table in tables for path in table.runs]
    spilled = bool(runs)
    if not spilled:
        first, *others = tables
        tables.clear()
        first.folder = None  # what fitted apart fits together
        while others:
            found = others.pop().held()
            first.add_pieces(found.data, found.ends, found.counts)
            del found
        first.slots = first.slots[:0]
        merged = [first.pieces()]
        del first
    else:
        runs += [table.pieces() for table in tables]
        tables.clear()
        size = sum(len(run) * _ENTRY + len(run.data) for run in runs)
        parts = max(1, -(-size * 4 // max_ram))
        edges = [(1 << 63) * part // parts for part in range(parts)] + [(1 << 63) - 1]
        merged = []
        for number, (low, high) in enumerate(pairwise(edges)):
            table = _Table(1 << 62, None)
            for run in runs:
                table.add_pieces(*_part(run, low, high))
            path = folder / f"merged-{number}"
            _write_run(path, table.pieces())
            merged.append(_open_run(path))
    return _fitting(merged, max_ram // weight_of)


def _fitting(parts: list[Pieces], most: int) -> tuple[Pieces, int]:
    """The commonest pieces with at most `most` bytes in all; of the last count that fits in part, those with the lowest
    fingerprints."""
    if sum(len(part.data) for part in parts) <= most:
        return _concatenated(parts), 0
    sizes = [np.diff(part.ends, prepend=0) for part in parts]
    held = np.zeros(1 << 16, dtype=np.int64)  # bytes of the pieces of each count; the last also has those beyond
    for part, size in zip(parts, sizes, strict=True):
        held += np.bincount(np.minimum(part.counts, len(held) - 1), weights=size, minlength=len(held)).astype(np.int64)
    above = np.cumsum(held[::-1])[::-1]  # bytes of the pieces seen that often or more
    cut = int(np.argmax(above <= most)) - 1  # all above this count fit, and a part of those with it
    room = most - (int(above[cut + 1]) if cut + 1 < len(above) else 0)
    kept = []
    for part, size in zip(parts, sizes, strict=True):  # in the order of fingerprints
        common = np.asarray(part.counts) > cut if cut < len(held) - 1 else np.zeros(len(part), dtype=bool)
        rest = ~common & (np.minimum(part.counts, len(held) - 1) == cut)
        filled = np.cumsum(np.where(rest, size, 0))
        fits = rest & (filled <= room)
        room = room - int(filled[fits][-1]) if fits.any() else room
        if (fits != rest).any():
            room = 0
        kept.append(part.chosen(np.flatnonzero(common | fits)))
    return _concatenated(kept), cut + 1


def _concatenated(parts: list[Pieces]) -> Pieces:
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(len(part.data) for part in parts)])
    return Pieces(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.ends + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.counts for part in parts]), np.concatenate([part.prints for part in parts]),
    )  # fmt: skip
