"""Token shards → training batches, in an order that is a pure function of seed and step.

    step ─▶ row numbers ─mixture─▶ (group, place) ─packing─▶ pieces of text ─memory map─▶ inputs, targets, documents

Nothing in it remembers anything: batch(step) is the same whatever was asked before, in whatever process, so a run's
state is its step, and any number of ranks and workers takes slices of the same global batches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.tokens.batch_schedule import Ramp
from lmforge.tokens.mixture import CONSTANT, Mixture, Schedule
from lmforge.tokens.packing import BestFit, Order, Ring
from lmforge.tokens.shards import Group, Shards

Array = NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of text: `inputs` and `targets` (rows, context) int64, target −1 where it does not count. With best-fit
    packing `documents` (rows, context) int32 numbers the documents within each row; attention must not cross them.
    None: a row is one text."""

    inputs: Array
    targets: Array
    documents: NDArray[np.int32] | None

    def part(self, first: int, rows: int) -> Batch:
        """Some of its rows."""
        return Batch(*(None if each is None else each[first : first + rows] for each in self))  # type: ignore[arg-type]

    def cut(self, context: int) -> Batch:
        """The same tokens in more, shorter rows; `context` divides theirs."""
        return Batch(*(None if each is None else each.reshape(-1, context) for each in self))  # type: ignore[arg-type]


class Loader:
    """Batches of rows of `context` tokens of one split: `batch_rows` rows each, or what a ramp says."""

    def __init__(
        self,
        shards: Shards,
        context: int,
        batch_rows: int | Ramp,
        seed: int,
        packing: Literal["ring", "best_fit"] = "ring",
        weights: Sequence[Schedule] | None = None,
        steps: int = 1,
    ) -> None:
        """`weights` of the shards' groups (default: every text equally often) over the course of `steps` steps (or the
        ramp's).

        Raises:
            InputError: the split is smaller than one batch, or a document index is damaged.
        """
        self.ramp = batch_rows if isinstance(batch_rows, Ramp) else Ramp([(0.0, batch_rows)], steps)
        needed = max(self.ramp.sizes) * context + 1
        if shards.tokens < needed:
            raise InputError(
                f"corpus smaller than one batch: {shards.tokens} tokens, needs {needed}; "
                "lower train.batch_tokens or tokens.context, or add texts"
            )
        self.shards, self.context, self.packing = shards, context, packing
        self.groups = shards.groups
        weights = weights or [CONSTANT] * len(self.groups)
        self.mixture = Mixture([group.tokens for group in self.groups], weights, self.ramp.before(self.ramp.steps))
        self.orders = [self._order(number, group, seed) for number, group in enumerate(self.groups)]

    def _order(self, number: int, group: Group, seed: int) -> Order:
        if self.packing == "ring":
            return Ring(group.tokens, self.context, seed, number)
        first, shards = group.first, self.shards
        return BestFit(
            group.tokens,
            lambda start, stop: shards.document_starts(first + start, first + stop) - first,
            self.context,
            seed,
            number,
        )

    def batch(self, step: int, row_start: int = 0, rows: int | None = None) -> Batch:
        """Batch `step`, or its rows from `row_start` on: ranks and micro-batches take slices of one global batch.

        Target i of a row is the token after input i, at a document's end the end of text; after a group's last token
        comes its first.

        Raises:
            IndexError: rows that the batch does not have, or a negative step.
        """
        size = self.ramp.rows(max(0, step))
        rows = size - row_start if rows is None else rows
        if step < 0 or row_start < 0 or rows < 0 or row_start + rows > size:
            raise IndexError(f"rows {row_start} to {row_start + rows} of step {step}, where a batch has {size} rows")
        numbers = np.arange(rows, dtype=np.int64) + (self.ramp.before(step) + row_start)
        groups, places = self.mixture.find(numbers)
        row, start, length, group = self._pieces(groups, places)
        inputs, targets = np.empty(rows * self.context, dtype=np.int64), np.empty(rows * self.context, dtype=np.int64)
        left = self.shards.copy_pieces(start, length, inputs, targets)
        ends = np.cumsum(length)
        for piece in np.flatnonzero(left).tolist():
            place = slice(ends[piece] - length[piece], ends[piece])
            self._copy(self.groups[group[piece]], int(start[piece]), inputs[place], targets[place])
        documents = None
        if self.packing == "best_fit":
            nth = np.arange(len(row)) - np.searchsorted(row, row)  # of the pieces of its row
            documents = np.repeat(nth.astype(np.int32), length).reshape(rows, self.context)
        return Batch(inputs.reshape(rows, self.context), targets.reshape(rows, self.context), documents)

    def _pieces(self, groups: Array, places: Array) -> tuple[Array, Array, Array, Array]:
        """The pieces of rows in the rows' order: row, start in the split, length, group."""
        found = []
        for number in np.unique(groups).tolist():
            mine = np.flatnonzero(groups == number)
            pieces = self.orders[number].pieces(places[mine])
            found.append(
                (
                    mine[pieces.row],
                    pieces.start + self.groups[number].first,
                    pieces.length,
                    np.full(len(pieces.row), number),
                )
            )
        empty = np.empty(0, dtype=np.int64)
        row, start, length, group = (
            (np.concatenate([empty, *parts]) for parts in zip(*found, strict=True)) if found else (empty,) * 4
        )
        if len(found) > 1:
            order = np.argsort(row, kind="stable")
            row, start, length, group = row[order], start[order], length[order], group[order]
        return row, start, length, group

    def documents(self, step: int, row: int) -> Array:
        """The numbers in the split of the documents of which row `row` of batch `step` holds a part."""
        _, starts, lengths, groups = self._pieces(
            *self.mixture.find(np.array([self.ramp.before(step) + row], dtype=np.int64))
        )
        begins = self.shards.documents[:, 0]
        found = []
        for start, length, number in zip(starts.tolist(), lengths.tolist(), groups.tolist(), strict=True):
            group = self.groups[number]
            past = start + length - (group.first + group.tokens)  # it may go round the ring
            for first, stop in ((start, start + length - max(0, past)), (group.first, group.first + past)):
                if first < stop:
                    found.append(np.arange(np.searchsorted(begins, first, "right") - 1, np.searchsorted(begins, stop)))
        return np.unique(np.concatenate(found))

    def share(self, rank: int, world: int, step: int = 0) -> range:
        """The rows of the batch of `step` that process `rank` of `world` takes; together the processes take each row
        once."""
        rows = self.ramp.rows(step)
        return range(rows * rank // world, rows * (rank + 1) // world)

    def _copy(self, group: Group, start: int, inputs: Array, targets: Array) -> None:
        """One piece of a group's ring, across files or past its end."""
        ring = (start - group.first + np.arange(len(inputs) + 1)) % group.tokens
        edges = [0, *(np.flatnonzero(ring[1:] == 0) + 1).tolist(), len(ring)]
        text, counts = np.empty(len(ring), dtype=np.int64), np.empty(len(ring), dtype=bool)
        for low, high in pairwise(edges):
            self.shards.read_into(group.first + int(ring[low]), text[low:high])
            counts[low:high] = self.shards.counts(group.first + int(ring[low]), high - low)
        inputs[:], targets[:] = text[:-1], np.where(counts[1:], text[1:], -1)


class Prefetch:
    """One process's rows of the batches of a run, read by a thread while the step before is computed. Close it to end
    the thread."""

    def __init__(
        self, loader: Loader, rows: range | Callable[[int], range], first: int, last: int, ahead: int = 2
    ) -> None:
        """`rows` (those of a step, where that is a function) of the batches from step `first` to before `last`, at most
        `ahead` of them held."""
        self.loader, self.rows, self.next, self.last = loader, rows, first, last
        self.waited = 0.0  # seconds that the last `take` waited
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lmforge-loader")
        self._ready: deque[Future[Batch]] = deque()
        for _ in range(ahead):
            self._ask()

    def _ask(self) -> None:
        if self.next < self.last:
            rows = self.rows if isinstance(self.rows, range) else self.rows(self.next)
            self._ready.append(self._pool.submit(self.loader.batch, self.next, rows.start, len(rows)))
            self.next += 1

    def take(self) -> Batch:
        """The rows of the next step.

        Raises:
            IndexError: after the last step.
        """
        started = time.perf_counter()
        batch = self._ready.popleft().result()
        self._ask()
        self.waited = time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the thread; batches that were made ahead are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
