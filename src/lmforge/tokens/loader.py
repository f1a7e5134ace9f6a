"""Token shards → training batches, in an order that is a pure function of seed and step.

    step ─▶ row numbers ─mixture─▶ (group, place) ─packing─▶ pieces of text ─memory map─▶ inputs, targets, documents

Nothing in it remembers anything: batch(step) is the same whatever was asked before, in whatever process, so a run's state is its step,
and any number of ranks and workers takes slices of the same global batches.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.tokens.mixture import CONSTANT, Mixture, Schedule
from lmforge.tokens.packing import BestFit, Order, Ring
from lmforge.tokens.shards import Group, Shards

Array = NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of text: `inputs` and `targets` (rows, context) int64, target −1 where it does not count. With best-fit packing `documents`
    (rows, context) int32 numbers the documents within each row; attention must not cross them. None: a row is one text."""

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
    """Batches of `batch_rows` rows of `context` tokens of one split."""

    def __init__(
        self, shards: Shards, context: int, batch_rows: int, seed: int, packing: Literal["ring", "best_fit"] = "ring",
        weights: Sequence[Schedule] | None = None, steps: int = 1,
    ) -> None:
        """`weights` of the shards' groups (default: every text equally often) over the course of `steps` steps.

        Raises:
            InputError: the split is smaller than one batch, or a document index is damaged.
        """
        needed = batch_rows * context + 1
        if shards.tokens < needed:
            raise InputError(f"corpus smaller than one batch: {shards.tokens} tokens, needs {needed}; "
                             "lower train.batch_tokens or tokens.context, or add texts")
        self.shards, self.context, self.batch_rows, self.packing = shards, context, batch_rows, packing
        self.groups = shards.groups
        weights = weights or [CONSTANT] * len(self.groups)
        self.mixture = Mixture([group.tokens for group in self.groups], weights, steps * batch_rows)
        self.orders = [self._order(number, group, seed) for number, group in enumerate(self.groups)]

    def _order(self, number: int, group: Group, seed: int) -> Order:
        if self.packing == "ring":
            return Ring(group.tokens, self.context, seed, number)
        first, shards = group.first, self.shards
        return BestFit(group.tokens, lambda start, stop: shards.document_starts(first + start, first + stop) - first, self.context, seed, number)

    def batch(self, step: int, row_start: int = 0, rows: int | None = None) -> Batch:
        """Batch `step`, or its rows from `row_start` on: ranks and micro-batches take slices of one global batch.

        Target i of a row is the token after input i, at a document's end the end of text; after a group's last token comes its first.

        Raises:
            IndexError: rows that the batch does not have, or a negative step.
        """
        rows = self.batch_rows - row_start if rows is None else rows
        if step < 0 or row_start < 0 or rows < 0 or row_start + rows > self.batch_rows:
            raise IndexError(f"rows {row_start} to {row_start + rows} of step {step}; a batch has {self.batch_rows} rows")
        numbers = np.arange(rows, dtype=np.int64) + (step * self.batch_rows + row_start)
        groups, places = self.mixture.find(numbers)
        shape = rows, self.context
        inputs, targets = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        documents = np.empty(shape, dtype=np.int32) if self.packing == "best_fit" else None
        for number in np.unique(groups).tolist():
            mine = np.flatnonzero(groups == number)
            pieces = self.orders[number].pieces(places[mine])
            row_before, at, count = -1, 0, 0
            for row, start, length in zip(mine[pieces.row].tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True):
                at, count = (at, count + 1) if row == row_before else (0, 0)
                row_before, stop = row, at + length
                self._read(self.groups[number], start, inputs[row, at:stop])
                self._read(self.groups[number], start + 1, targets[row, at:stop])
                if self.shards.masked:
                    self._mask(self.groups[number], start + 1, targets[row, at:stop])
                if documents is not None:
                    documents[row, at:stop] = count
                at = stop
        return Batch(inputs, targets, documents)

    def share(self, rank: int, world: int) -> range:
        """The rows of every batch that process `rank` of `world` takes; together the processes take each row once."""
        return range(self.batch_rows * rank // world, self.batch_rows * (rank + 1) // world)

    def _read(self, group: Group, start: int, into: Array) -> None:
        """Tokens of a group's ring."""
        done = 0
        while done < len(into):
            at = (start + done) % group.tokens
            piece = into[done : done + group.tokens - at]
            self.shards.read_into(group.first + at, piece)
            done += len(piece)

    def _mask(self, group: Group, start: int, targets: Array) -> None:
        done = 0
        while done < len(targets):
            at = (start + done) % group.tokens
            piece = targets[done : done + group.tokens - at]
            piece[~self.shards.counts(group.first + at, len(piece))] = -1
            done += len(piece)


class Prefetch:
    """One process's rows of the batches of a run, read by a thread while the step before is computed. Close it to end the thread."""

    def __init__(self, loader: Loader, rows: range, first: int, last: int, ahead: int = 2) -> None:
        """`rows` of the batches from step `first` to before `last`, at most `ahead` of them held."""
        self.loader, self.rows, self.next, self.last = loader, rows, first, last
        self.waited = 0.0  # seconds that the last `take` waited
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lmforge-loader")
        self._ready: deque[Future[Batch]] = deque()
        for _ in range(ahead):
            self._ask()

    def _ask(self) -> None:
        if self.next < self.last:
            self._ready.append(self._pool.submit(self.loader.batch, self.next, self.rows.start, len(self.rows)))
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
