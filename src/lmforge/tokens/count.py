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

import queue
import tempfile
import threading
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np

from lmforge.errors import InputError
from lmforge.tokens.piece_table import ENTRY, Pieces, PieceTable, open_run, part_of_run, write_run
from lmforge.tokens.pretokenize import as_bytes

BATCH_BYTES = 1 << 18
Item = TypeVar("Item", str, bytes)
LEAST_ROOM = 1 << 20  # bytes of a table, whatever the budget


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
        tables = [PieceTable(max(LEAST_ROOM, max_ram // (2 * threads)), Path(name)) for _ in range(threads)]
        _fill(tables, texts, superwords)
        return _together(tables, Path(name), max_ram, weight_of)


def weighted_pieces(pairs: Iterable[tuple[bytes, int]]) -> Pieces:
    """Pieces with counts that were made elsewhere; the counts of equal pieces add up.

    Raises:
        InputError: a count that is not between 1 and 2^62.
    """
    table = PieceTable(1 << 62, None)
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


def _fill(tables: list[PieceTable], texts: Iterable[str], superwords: bool) -> None:
    """Hand batches of texts to one thread a table."""
    if len(tables) == 1:
        for batch in batches(texts, BATCH_BYTES):
            tables[0].add_texts(batch, superwords)
        return
    waiting: queue.Queue[list[str] | None] = queue.Queue(maxsize=1)
    failed: list[BaseException] = []

    def work(table: PieceTable) -> None:
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


def _together(tables: list[PieceTable], folder: Path, max_ram: int, weight_of: int) -> tuple[Pieces, int]:
    """One list of pieces out of all tables and their runs, as many as fit."""
    runs = [open_run(path) for table in tables for path in table.runs]
    spilled = bool(runs)
    if not spilled:
        first, *others = tables
        tables.clear()
        first.folder = None  # what fitted apart fits together
        while others:
            held = others.pop().held()
            first.add_pieces(held.data, held.ends, held.counts)
            del held
        first.slots = first.slots[:0]
        merged = [first.pieces()]
        del first
    else:
        runs += [table.pieces() for table in tables]
        tables.clear()
        size = sum(len(run) * ENTRY + len(run.data) for run in runs)
        parts = max(1, -(-size * 4 // max_ram))
        edges = [(1 << 63) * part // parts for part in range(parts)] + [(1 << 63) - 1]
        merged = []
        for number, (low, high) in enumerate(pairwise(edges)):
            table = PieceTable(1 << 62, None)
            for run in runs:
                table.add_pieces(*part_of_run(run, low, high))
            path = folder / f"merged-{number}"
            write_run(path, table.pieces())
            merged.append(open_run(path))
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
