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
from lmforge.progress import log_once
from lmforge.tokens.batch_schedule import Ramp
from lmforge.tokens.images import PATCH
from lmforge.tokens.mixture import CONSTANT, Mixture, Schedule
from lmforge.tokens.packing import BestFit, Order, Ring, Whole
from lmforge.tokens.shards import Group, Shards

Array = NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of text: `inputs` and `targets` (rows, context) int64, target −1 where it does not count. With best-fit
    packing and with whole documents `documents` (rows, context) int32 numbers the documents within each row, the
    padding after them as one more; attention must not cross them. None: a row is one text. `images` (N,C,S,S) uint8,
    where texts have any: those of all rows in the order of reading, whose patches are the inputs `PATCH`, equally many
    of each image."""

    inputs: Array
    targets: Array
    documents: NDArray[np.int32] | None
    images: NDArray[np.uint8] | None = None

    def part(self, first: int, rows: int) -> Batch:
        """Some of its rows."""
        here = slice(first, first + rows)
        documents = None if self.documents is None else self.documents[here]
        images = None if self.images is None else self._images_of(first, rows)
        return Batch(self.inputs[here], self.targets[here], documents, images)

    def _images_of(self, first: int, rows: int) -> NDArray[np.uint8]:
        assert self.images is not None
        marks = (self.inputs == PATCH).sum(1)
        patches = max(1, int(marks.sum()) // max(1, len(self.images)))
        before = np.concatenate(([0], np.cumsum(marks))) // patches
        return self.images[before[first] : before[min(first + rows, len(marks))]]

    def cut(self, context: int) -> Batch:
        """The same tokens in more, shorter rows; `context` divides theirs."""
        documents = None if self.documents is None else self.documents.reshape(-1, context)
        return Batch(self.inputs.reshape(-1, context), self.targets.reshape(-1, context), documents, self.images)


PackingKind = Literal["ring", "best_fit", "whole"]


class Loader:
    """Batches of rows of `context` tokens of one split: `batch_rows` rows each, or what a ramp says.

    With packing "whole" every document stands whole in one row of each epoch; those longer than a row are left out and
    named in the log.
    """

    def __init__(
        self,
        shards: Shards,
        context: int,
        batch_rows: int | Ramp,
        seed: int,
        packing: PackingKind = "ring",
        weights: Sequence[Schedule] | None = None,
        steps: int = 1,
    ) -> None:
        """`weights` of the shards' groups (default: every text equally often) over the course of `steps` steps (or the
        ramp's).

        Raises:
            InputError: the split is smaller than one batch, or a document index is damaged.
        """
        self.ramp = batch_rows if isinstance(batch_rows, Ramp) else Ramp([(0.0, batch_rows)], steps)
        self.shards, self.context, self.packing = shards, context, packing
        self.groups = shards.groups
        self.orders = [self._order(number, group, seed) for number, group in enumerate(self.groups)]
        sizes = [group.tokens for group in self.groups]
        if packing == "whole":
            sizes = [order.rows * context for order in self.orders]
            self._name_left_out()
        needed, held = max(self.ramp.sizes) * context, sum(sizes) if packing == "whole" else shards.tokens - 1
        if held < needed:
            raise InputError(
                f"corpus smaller than one batch: {held + 1} tokens, needs {needed + 1}; "
                "lower train.batch_tokens or tokens.context, or add texts"
            )
        weights = weights or [CONSTANT] * len(self.groups)
        self.mixture = Mixture(sizes, weights, self.ramp.before(self.ramp.steps))

    def _order(self, number: int, group: Group, seed: int) -> Order:
        if self.packing == "ring":
            return Ring(group.tokens, self.context, seed, number)
        if self.packing == "whole":
            return _whole(self.shards, group, self.context, seed, number)
        first, shards = group.first, self.shards
        return BestFit(
            group.tokens,
            lambda start, stop: shards.document_starts(first + start, first + stop) - first,
            self.context,
            seed,
            number,
        )

    def _name_left_out(self) -> None:
        """Say which documents are longer than a row.

        Raises:
            InputError: all are.
        """
        long = np.flatnonzero(self.shards.documents[:, 1] > self.context)
        if not len(long):
            return
        what = (
            f"{len(long)} of {len(self.shards.documents)} examples of the {self.shards.split} split are longer than a "
            f"row of {self.context} tokens (tokens.context), the longest with {self.shards.documents[long, 1].max()}"
        )
        if len(long) == len(self.shards.documents):
            raise InputError(f"{what}; raise tokens.context or shorten them")
        names = ", ".join(str(number) for number in long[:10].tolist()) + (", …" if len(long) > 10 else "")
        log_once(f"tokens: {what}; left out: numbers {names}")

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
        before = np.cumsum(length) - length
        nth = np.arange(len(row)) - np.searchsorted(row, row)  # of the pieces of its row
        places = before - before[np.searchsorted(row, row)] + row * self.context
        inputs = np.full(rows * self.context, self.shards.pad, dtype=np.int64)
        targets = np.full(rows * self.context, -1, dtype=np.int64)
        left = self.shards.copy_pieces(start, length, places, inputs, targets)
        for piece in np.flatnonzero(left).tolist():
            place = slice(places[piece], places[piece] + length[piece])
            self._copy(self.groups[group[piece]], int(start[piece]), inputs[place], targets[place])
        documents = None
        if self.packing != "ring":
            numbered = np.repeat(np.bincount(row, minlength=rows).astype(np.int32), self.context)
            within = np.arange(length.sum()) - np.repeat(before, length)
            numbered[np.repeat(places, length) + within] = np.repeat(nth.astype(np.int32), length)
            documents = numbered.reshape(rows, self.context)
        images = self._images(start, length, inputs, targets)
        return Batch(inputs.reshape(rows, self.context), targets.reshape(rows, self.context), documents, images)

    def _images(self, start: Array, length: Array, inputs: Array, targets: Array) -> NDArray[np.uint8] | None:
        """The images of some pieces; their marks among the inputs become PATCH, and none is a target."""
        pictures = self.shards.pictures
        if pictures is None:
            return None
        inputs[inputs == pictures.mark] = PATCH
        targets[targets == pictures.mark] = -1
        return pictures.of_pieces(start, length)

    def _pieces(self, groups: Array, places: Array) -> tuple[Array, Array, Array, Array]:
        """The pieces of rows in the rows' order: row, start in the split, length, group."""
        parts = []
        for number in np.unique(groups).tolist():
            mine = np.flatnonzero(groups == number)
            pieces = self.orders[number].pieces(places[mine])
            parts.append(
                (
                    mine[pieces.row],
                    pieces.start + self.groups[number].first,
                    pieces.length,
                    np.full(len(pieces.row), number),
                )
            )
        empty = np.empty(0, dtype=np.int64)
        row, start, length, group = (
            (np.concatenate([empty, *each]) for each in zip(*parts, strict=True)) if parts else (empty,) * 4
        )
        if len(parts) > 1:
            order = np.argsort(row, kind="stable")
            row, start, length, group = row[order], start[order], length[order], group[order]
        return row, start, length, group

    def documents(self, step: int, row: int) -> Array:
        """The numbers in the split of the documents of which row `row` of batch `step` holds a part."""
        _, starts, lengths, groups = self._pieces(
            *self.mixture.find(np.array([self.ramp.before(step) + row], dtype=np.int64))
        )
        begins = self.shards.documents[:, 0]
        numbers = []
        for start, length, number in zip(starts.tolist(), lengths.tolist(), groups.tolist(), strict=True):
            group = self.groups[number]
            past = start + length - (group.first + group.tokens)  # it may go round the ring
            for first, stop in ((start, start + length - max(0, past)), (group.first, group.first + past)):
                if first < stop:
                    numbers.append(
                        np.arange(np.searchsorted(begins, first, "right") - 1, np.searchsorted(begins, stop))
                    )
        return np.unique(np.concatenate(numbers))

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
        following = text
        if not self.shards.uniform:
            begins = self.shards.documents[:, 0]
            places = group.first + ring
            ends = begins[np.searchsorted(begins, places, side="right") - 1] == places
            following = np.where(ends, self.shards.end, text)
        inputs[:], targets[:] = text[:-1], np.where(counts[1:], following[1:], -1)


def whole_tokens(shards: Shards, context: int) -> int:
    """The tokens of an epoch of whole documents in rows of `context`, padding included."""
    return sum(_whole(shards, group, context).rows for group in shards.groups) * context


def _whole(shards: Shards, group: Group, context: int, seed: int = 0, number: int = 0) -> Whole:
    """The documents of a group, each whole in a row."""
    low, high = np.searchsorted(shards.documents[:, 0], (group.first, group.first + group.tokens))
    table = shards.documents[low:high]
    return Whole(table[:, 0] - group.first, table[:, 1], context, seed, number)


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
