"""The rows of one group of documents, as pieces of its text, in an order that is a pure function of seed and row
number.

`Ring`: the group's N tokens are a ring, cut into R = ⌊N / context⌋ rows wherever they end, one piece a row.
`BestFit`: rows are put together from whole documents (best fit, longest first: Ding et al. 2024, "Fewer Truncations
Improve Language Modeling", section 3). The ring is cut into blocks of about 16 M tokens, each packed alone into exactly
its tokens / context rows: documents longer than a row are cut first, and those that fit nowhere whole at the end are
cut to fill the holes, so no row is padded, every block has equally many rows, and a row is found by packing its block
alone.
`Whole`: rows hold whole documents alone, by the same best fit, and what is left of a row is padded: for examples, of
which a part is worth nothing. Documents longer than a row are left out. How many rows that makes depends on the lengths
alone, so every epoch has as many; which of the documents of one length stand together is drawn anew.

Each epoch begins to cut at an offset of its own and visits the rows in an order of its own, so every row comes once an
epoch, and rows begin elsewhere the next time. The order is a Feistel permutation (Luby & Rackoff 1988) on the smallest
even number of bits that holds R, walked on until it falls inside R (cycle-walking: Black & Rogaway 2002), so any row is
found in constant time and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import Number, compiled

Array = NDArray[np.int64]
Words = NDArray[np.uint64]
Starts = Callable[[int, int], Array]  # (start, stop) → the places of the documents that begin there
# Packed together and visited together: few would put neighbours into one batch and cut more documents, many take long
# to pack.
BLOCK_TOKENS, LEAST_ROWS = 1 << 24, 256
_ROUNDS = 6


class DocumentPieces(NamedTuple):
    """Pieces of text: which of the rows asked for each belongs to (ascending), where it begins in the group, and its
    tokens."""

    row: Array
    start: Array
    length: Array


class PackingPlan(NamedTuple):
    """A packed block: bounds of each row's pieces (rows + 1), the pieces' starts in the group and lengths."""

    bounds: Array
    start: Array
    length: Array


class Order(Protocol):
    """An endless sequence of rows, `rows` an epoch."""

    rows: int

    def pieces(self, numbers: Array) -> DocumentPieces:
        """The pieces that make up the rows of these numbers, counted over all epochs."""


class Ring:
    """Rows of `context` tokens cut from a ring of `tokens`."""

    def __init__(self, tokens: int, context: int, seed: int, group: int = 0) -> None:
        self.tokens, self.context, self.seed, self.group = tokens, context, seed, group
        self.rows = max(1, tokens // context)  # of an epoch

    def pieces(self, numbers: Array) -> DocumentPieces:
        """One piece a row."""
        starts = np.empty(len(numbers), dtype=np.int64)
        epochs, places = np.divmod(numbers, self.rows)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            keys, cut = _epoch_keys(self.seed, epoch, self.group)
            starts[mine] = (cut % self.tokens + permute(places[mine], self.rows, keys) * self.context) % self.tokens
        return DocumentPieces(np.arange(len(numbers)), starts, np.full(len(numbers), self.context, dtype=np.int64))


class BestFit:
    """Rows of `context` tokens packed from the documents of a ring of `tokens`, which `starts` finds."""

    def __init__(
        self, tokens: int, starts: Starts, context: int, seed: int, group: int = 0, block_rows: int = 0
    ) -> None:
        self.tokens, self.starts, self.context, self.seed, self.group = tokens, starts, context, seed, group
        rows = max(1, tokens // context)
        self.blocks = max(1, round(rows / (block_rows or max(LEAST_ROWS, BLOCK_TOKENS // context))))
        self.block_rows = rows // self.blocks
        self.rows = self.blocks * self.block_rows  # of an epoch
        self._plans: dict[int, PackingPlan] = {}  # of the blocks last asked for alone, so that memory stays flat

    def pieces(self, numbers: Array) -> DocumentPieces:
        """The pieces of each row, in the order they stand in it."""
        parts = []
        visits, inside = np.divmod(numbers, self.block_rows)
        wanted = np.unique(visits).tolist()
        self._plans = plans = {visit: plan for visit in wanted if (plan := self._plans.get(visit))}
        for visit in wanted:
            mine = np.flatnonzero(visits == visit)
            epoch, turn = divmod(visit, self.blocks)
            block = int(permute(np.array([turn]), self.blocks, _epoch_keys(self.seed, epoch, self.group)[0])[0])
            if visit not in plans:
                plans[visit] = self._pack(epoch, block)
            at = permute(inside[mine], self.block_rows, _epoch_keys(self.seed, epoch, self.group, block + 1)[0])
            parts.append(_rows_of(plans[visit], mine, at))
        return _in_order(parts)

    def _pack(self, epoch: int, block: int) -> PackingPlan:
        """A block of an epoch, packed."""
        size = self.block_rows * self.context
        _, cut = _epoch_keys(self.seed, epoch, self.group)
        first = (cut + block * size) % self.tokens
        edges = np.concatenate(([first], self._starts_on_ring(first, first + size), [first + size]))
        edges = np.unique(edges)
        pieces = pack(edges[:-1], np.diff(edges), self.block_rows, self.context)
        return PackingPlan(
            np.searchsorted(pieces.row, np.arange(self.block_rows + 1)), pieces.start % self.tokens, pieces.length
        )

    def _starts_on_ring(self, first: int, stop: int) -> Array:
        """Where documents begin between two places on the ring, counted on past its end."""
        parts = []
        turn = first - first % self.tokens
        while turn < stop:
            parts.append(self.starts(max(0, first - turn), min(self.tokens, stop - turn)) + turn)
            turn += self.tokens
        return np.concatenate(parts)


class Whole:
    """Rows of at most `context` tokens put together from whole documents.

    `left_out`: the numbers of the documents that are longer than a row.
    """

    def __init__(self, starts: Array, lengths: Array, context: int, seed: int, group: int = 0) -> None:
        """Of a group: where its documents begin, and their tokens."""
        fits = lengths <= context
        self.starts, self.lengths, self.left_out = starts[fits], lengths[fits], np.flatnonzero(~fits)
        self.context, self.seed, self.group = context, seed, group
        self._plans: dict[int, PackingPlan] = {}  # of the epochs last asked for
        self.rows = len(self._plan(0).bounds) - 1  # of an epoch

    def pieces(self, numbers: Array) -> DocumentPieces:
        """The documents of each row, in the order they stand in it; together they may have less than `context`
        tokens."""
        parts = []
        epochs, places = np.divmod(numbers, max(1, self.rows))
        for epoch in np.unique(epochs).tolist():
            mine = np.flatnonzero(epochs == epoch)
            at = permute(places[mine], self.rows, _epoch_keys(self.seed, epoch, self.group)[0])
            parts.append(_rows_of(self._plan(epoch), mine, at))
        return _in_order(parts)

    def _plan(self, epoch: int) -> PackingPlan:
        """All rows of an epoch."""
        if epoch not in self._plans:
            size = len(self.lengths)
            shuffled = permute(np.arange(size), size, _epoch_keys(self.seed, epoch, self.group, 0)[0])
            items = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
            row, start, length = _fit(self.starts[items], self.lengths[items], 0, size, self.context)
            order = np.argsort(row, kind="stable")
            bounds = np.searchsorted(row[order], np.arange((row.max() + 1 if size else 0) + 1))
            kept = {other: plan for other, plan in self._plans.items() if other == epoch - 1}
            self._plans = kept | {epoch: PackingPlan(bounds, start[order], length[order])}
        return self._plans[epoch]


def _rows_of(plan: PackingPlan, numbers: Array, at: Array) -> tuple[Array, Array, Array]:
    """The pieces of rows `at` of a plan: the number that each row has in `numbers`, starts and lengths."""
    count = plan.bounds[at + 1] - plan.bounds[at]
    piece = np.arange(count.sum()) + np.repeat(plan.bounds[at] - np.cumsum(count) + count, count)
    return np.repeat(numbers, count), plan.start[piece], plan.length[piece]


def _in_order(parts: list[tuple[Array, Array, Array]]) -> DocumentPieces:
    """Pieces of several plans, in the order of their rows."""
    empty = np.empty(0, dtype=np.int64)
    row, start, length = (np.concatenate([empty, *each]) for each in zip(*parts, strict=True)) if parts else [empty] * 3
    order = np.argsort(row, kind="stable")
    return DocumentPieces(row[order], start[order], length[order])


def pack(starts: Array, lengths: Array, rows: int, context: int) -> DocumentPieces:
    """Pieces of text, in its order, that together have rows × context tokens → the pieces of each row, each row full.

    A piece of a row or longer is cut into whole rows and what is left. The rest go, longest first, into the row that
    they fill best (the least room that is enough); those that fit into none are cut into the room that is left, most
    room first.
    """
    whole = lengths // context
    nth = np.arange(whole.sum()) - np.repeat(np.cumsum(whole) - whole, whole)  # of the whole rows of its piece
    row, start = np.arange(len(nth)), np.repeat(starts, whole) + nth * context
    rest = lengths % context
    items = np.argsort(-rest, kind="stable")[: np.count_nonzero(rest)]
    fitted = _fit((starts + whole * context)[items], rest[items], len(nth), rows, context)
    pieces = DocumentPieces(
        *(np.concatenate(pair) for pair in zip((row, start, np.full(len(nth), context)), fitted, strict=True))
    )
    order = np.argsort(pieces.row, kind="stable")
    return DocumentPieces(*(each[order] for each in pieces))


@compiled
def _fit(starts: Array, lengths: Array, begun: int, rows: int, context: int) -> tuple[Array, Array, Array]:
    """Row, start and length of each piece placed, for pieces given longest first, where the first `begun` rows are
    full."""
    most = len(lengths) + rows  # each row's room is filled up by one cut at most
    row_of, start_of, length_of = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    # rows by the room left in them: the first, and the one after each
    first, after = np.full(context + 1, -1), np.full(rows, -1)
    homeless = np.empty(len(lengths), np.int64)
    placed = without = 0
    for item in range(len(lengths)):
        room = lengths[item]
        while room <= context and first[room] < 0:
            room += 1
        if room <= context:
            row = first[room]
            first[room] = after[row]
        elif begun < rows:
            row, room, begun = begun, context, begun + 1
        else:
            homeless[without] = item
            without += 1
            continue
        row_of[placed], start_of[placed], length_of[placed] = row, starts[item], lengths[item]
        placed += 1
        left = room - lengths[item]
        after[row] = first[left]
        first[left] = row
    room = context
    for item in homeless[:without]:
        start, length = starts[item], lengths[item]
        while length > 0:
            while first[room] < 0:
                room -= 1
            row = first[room]
            first[room] = after[row]
            part = min(room, length)
            row_of[placed], start_of[placed], length_of[placed] = row, start, part
            placed += 1
            start, length, left = start + part, length - part, room - part
            after[row] = first[left]
            first[left] = row
    return row_of[:placed], start_of[:placed], length_of[:placed]


@lru_cache(maxsize=256)
def _epoch_keys(seed: int, *place: int) -> tuple[tuple[int, ...], int]:
    """The keys of the permutation at a place (epoch, group, block), and a number that says where an epoch cuts the
    ring."""
    *keys, cut = (int(word) for word in np.random.SeedSequence([seed, *place]).generate_state(_ROUNDS + 1, np.uint64))
    return tuple(keys), cut


def permute(places: Array, size: int, keys: tuple[int, ...]) -> Array:
    """The images of `places` under the permutation of range(`size`) that `keys` choose: a balanced Feistel network over
    2h bits, 4^h < 4·size, applied again until the image is below `size` (fewer than four times on average)."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    images = np.ascontiguousarray(places, dtype=np.int64).view(np.uint64).copy()
    _walk(images, np.uint64(size), np.array(keys, dtype=np.uint64), np.uint64(half), np.uint64((1 << half) - 1))
    return images.view(np.int64)


@compiled
def _walk(images: Words, size: Number, keys: Words, half: Number, mask: Number) -> None:
    """`permute` in place. The rounds mix by SplitMix64's finaliser (Steele, Lea & Flood 2014): every input bit moves
    every output bit."""
    for place in range(len(images)):
        image = images[place]
        inside = False
        while not inside:
            left, right = image >> half, image & mask
            for key in keys:
                word = right ^ key
                word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                word ^= word >> np.uint64(31)
                left, right = right, left ^ (word & mask)
            image = (left << half) | right
            inside = image < size
        images[place] = image
