"""Token shards → training batches, in an order that is a pure function of seed and step.

The split is a ring of N tokens, cut into R = ⌊N / context⌋ rows. Each epoch begins to cut at an offset of its own and visits the rows in
an order of its own, so every row comes once an epoch, and rows begin elsewhere the next time. The order is a Feistel permutation (Luby &
Rackoff 1988) on the smallest even number of bits that holds R, walked on until it falls inside R (cycle-walking: Black & Rogaway 2002),
so any step is found in constant time and memory, and nothing needs saving to resume.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.tokens.shards import Shards

Array = NDArray[np.int64]
_ROUNDS = 6


class Loader:
    """Batches of `batch_rows` rows of `context` tokens. It holds no state: for a context that changes over the steps, make one for each."""

    def __init__(self, shards: Shards, context: int, batch_rows: int, seed: int) -> None:
        """Over one split.

        Raises:
            InputError: the split is smaller than one batch.
        """
        needed = batch_rows * context + 1
        if shards.tokens < needed:
            raise InputError(f"corpus smaller than one batch: {shards.tokens} tokens, needs {needed}; "
                             "lower train.batch_tokens or tokens.context, or add texts")
        self.shards, self.context, self.batch_rows, self.seed = shards, context, batch_rows, seed
        self.rows = shards.tokens // context  # of an epoch

    def batch(self, step: int, row_start: int = 0, rows: int | None = None) -> tuple[Array, Array]:
        """Inputs and targets (rows, context), int64, of batch `step`, or of its rows from `row_start` on: ranks and micro-batches take
        slices of one global batch. Target i of a row is the token after input i; after the split's last token comes its first.

        Raises:
            IndexError: rows that the batch does not have, or a negative step.
        """
        rows = self.batch_rows - row_start if rows is None else rows
        if step < 0 or row_start < 0 or rows < 0 or row_start + rows > self.batch_rows:
            raise IndexError(f"rows {row_start} to {row_start + rows} of step {step}; a batch has {self.batch_rows} rows")
        first = step * self.batch_rows + row_start
        text = np.empty((rows, self.context + 1), dtype=np.int64)
        for row in range(rows):
            self._read(self.start_of(first + row), text[row])
        return text[:, :-1].copy(), text[:, 1:].copy()

    def share(self, rank: int, world: int) -> range:
        """The rows of every batch that process `rank` of `world` takes; together the processes take each row once."""
        return range(self.batch_rows * rank // world, self.batch_rows * (rank + 1) // world)

    def start_of(self, number: int) -> int:
        """The first token of the row that comes `number`-th, counted over all steps and epochs."""
        epoch, place = divmod(number, self.rows)
        keys, offset = _epoch_keys(self.seed, epoch, self.shards.tokens)
        return (offset + permute(place, self.rows, keys) * self.context) % self.shards.tokens

    def _read(self, start: int, into: Array) -> None:
        head = min(len(into), self.shards.tokens - start)
        into[:head] = self.shards.read(start, head)
        into[head:] = self.shards.read(0, len(into) - head)


@lru_cache(maxsize=64)
def _epoch_keys(seed: int, epoch: int, tokens: int) -> tuple[tuple[int, ...], int]:
    """The keys of an epoch's permutation, and where it cuts the ring."""
    *keys, cut = (int(word) for word in np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS + 1, np.uint64))
    return tuple(keys), cut % tokens


def permute(place: int, size: int, keys: tuple[int, ...]) -> int:
    """The image of `place` under the permutation of range(`size`) that `keys` choose: a balanced Feistel network over 2h bits,
    4^h < 4·size, applied again until the image is below `size` (fewer than four times on average)."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        place = left << half | right
        if place < size:
            return place


def _mix(word: int) -> int:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): every input bit moves every output bit."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    word = (word ^ word >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return word ^ word >> 31
