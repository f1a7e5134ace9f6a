"""Text → tokens as one compiled pass: cut a piece, look it up among those met before, merge it by rank if it is new.

    bytes ──piece_end──▶ piece ──fingerprint──▶ memo: its tokens ──not there──▶ merge: the lowest rank first, leftmost
    of equal ones

Pieces of a language repeat, so the memo answers nearly all of them. Short pieces are merged by looking for the lowest
rank in a line, longer ones (lines, where merges cross spaces) with a heap. The interpreter's lock is not held: each
thread has a memo of its own (`Encoder`), all share the table of merges (`Ranks`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import Number, compiled
from lmforge.tokens.pretokenize import Bytes, fingerprint, piece_end

Integers = NDArray[np.int64]
Short = NDArray[np.int32]
MEMO_PIECES = 1 << 19
MEMO_BYTES = 48  # longer pieces hardly ever come again
_LINE = 48  # symbols up to which looking along the line is faster than a heap
_NONE = 0x7FFFFFFF


class Ranks(NamedTuple):
    """A hash table: pair → (rank of its merge, the token it makes); and the token of each byte."""

    keys: Integers  # left << 32 | right, -1 where empty
    values: Integers  # rank << 32 | token
    of_byte: Short


class Memo(NamedTuple):
    """Pieces met before: a hash table of entries, the pieces' bytes and tokens one after another."""

    slots: Short
    prints: Integers
    ends: Integers
    token_ends: Integers
    data: Bytes
    tokens: Short
    used: Integers  # (1,) entries


class Scratch(NamedTuple):
    """Where a new piece is merged: per symbol its token, the rank of its pair, its neighbours; and the heap."""

    tokens: Short
    ranks: Integers
    after: Short
    before: Short
    heap: Integers


@compiled
def _fill(merges: Short, keys: Integers, values: Integers) -> None:
    mask = len(keys) - 1
    for rank in range(len(merges)):
        key = np.int64(merges[rank, 0]) << 32 | merges[rank, 1]
        slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
        while keys[slot] != -1 and keys[slot] != key:
            slot = (slot + 1) & mask
        if keys[slot] == -1:
            keys[slot], values[slot] = key, np.int64(rank) << 32 | merges[rank, 2]


def ranks_of(merges: Short, of_byte: Short) -> Ranks:
    """The table of (merges, 3): left, right and what they make, in the order of their ranks."""
    size = 1 << int(2 * len(merges) + 1).bit_length()
    ranks = Ranks(np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.int64), of_byte)
    _fill(merges, ranks.keys, ranks.values)
    return ranks


@compiled
def _rank(ranks: Ranks, left: Number, right: Number) -> Number:
    """rank << 32 | token of a pair; _NONE << 32 where it is no merge."""
    key = np.int64(left) << 32 | right
    mask = len(ranks.keys) - 1
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while ranks.keys[slot] != key:
        if ranks.keys[slot] == -1:
            return np.int64(_NONE) << 32
        slot = (slot + 1) & mask
    return ranks.values[slot]


@compiled
def _merge_line(ranks: Ranks, scratch: Scratch, size: Number) -> Number:
    """Merge the first `size` tokens of the scratch in place; gives back how many are left."""
    tokens, pairs = scratch.tokens, scratch.ranks
    for at in range(size - 1):
        pairs[at] = _rank(ranks, tokens[at], tokens[at + 1])
    while size > 1:
        best, least = 0, pairs[0]
        for at in range(1, size - 1):
            if pairs[at] < least:
                best, least = at, pairs[at]
        if least >> 32 == _NONE:
            break
        tokens[best] = np.int32(least & 0xFFFFFFFF)
        size -= 1
        # close the gap: tokens from the one merged away on, pairs from that with it on
        for at in range(best + 1, size):
            tokens[at] = tokens[at + 1]
            pairs[at - 1] = pairs[at]
        if best < size - 1:
            pairs[best] = _rank(ranks, tokens[best], tokens[best + 1])
        if best > 0:
            pairs[best - 1] = _rank(ranks, tokens[best - 1], tokens[best])
    return size


@compiled
def _heap_push(heap: Integers, size: Number, value: Number) -> Number:
    at = size
    while at > 0 and heap[(at - 1) >> 1] > value:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = value
    return size + 1


@compiled
def _heap_pop(heap: Integers, size: Number) -> Number:
    size -= 1
    value = heap[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
    return size


@compiled
def _note(ranks: Ranks, scratch: Scratch, at: Number, queued: Number) -> Number:
    """Look up the pair at a place and queue it by (rank, place)."""
    following = scratch.after[at]
    value = _rank(ranks, scratch.tokens[at], scratch.tokens[following]) if following >= 0 else np.int64(_NONE) << 32
    scratch.ranks[at] = value
    return queued if value >> 32 == _NONE else _heap_push(scratch.heap, queued, (value >> 32) << 32 | at)


@compiled
def _merge_heap(ranks: Ranks, scratch: Scratch, size: Number) -> Number:
    """`_merge_line` for many symbols: the same merges in the same order, from a heap of (rank, place)."""
    tokens, after, before = scratch.tokens, scratch.after, scratch.before
    queued = 0
    for at in range(size):
        before[at], after[at] = at - 1, at + 1 if at + 1 < size else -1
    for at in range(size - 1):
        queued = _note(ranks, scratch, at, queued)
    scratch.ranks[size - 1] = np.int64(_NONE) << 32
    while queued > 0:
        top = scratch.heap[0]
        queued = _heap_pop(scratch.heap, queued)
        at = top & 0xFFFFFFFF
        if tokens[at] < 0 or scratch.ranks[at] >> 32 != top >> 32:
            continue  # its place was merged, or has another pair now
        middle = after[at]
        tokens[at], tokens[middle] = np.int32(scratch.ranks[at] & 0xFFFFFFFF), -1
        after[at] = after[middle]
        if after[at] >= 0:
            before[after[at]] = at
        queued = _note(ranks, scratch, at, queued)
        if before[at] >= 0:
            queued = _note(ranks, scratch, before[at], queued)
    left = 0
    at = 0
    while at >= 0:
        tokens[left] = tokens[at]
        left += 1
        at = after[at]
    return left


@compiled
def _merged(text: Bytes, start: Number, stop: Number, ranks: Ranks, scratch: Scratch) -> Number:
    """The tokens of one piece, in the scratch; gives back their number."""
    for at in range(start, stop):
        scratch.tokens[at - start] = ranks.of_byte[text[at]]
    return (
        _merge_line(ranks, scratch, stop - start)
        if stop - start <= _LINE
        else _merge_heap(ranks, scratch, stop - start)
    )


@compiled
def _find(text: Bytes, start: Number, stop: Number, seen: Number, memo: Memo) -> Number:
    """The memo's slot of a piece, or the empty one where it would go."""
    mask = len(memo.slots) - 1
    slot = seen & mask
    while memo.slots[slot] >= 0:
        entry = memo.slots[slot]
        if memo.prints[entry] == seen and memo.ends[entry + 1] - memo.ends[entry] == stop - start:
            offset = memo.ends[entry] - start
            at = start
            while at < stop and memo.data[at + offset] == text[at]:
                at += 1
            if at == stop:
                return slot
        slot = (slot + 1) & mask
    return slot


@compiled
def _keep(
    text: Bytes, start: Number, stop: Number, seen: Number, slot: Number, memo: Memo, tokens: Short, number: Number
) -> None:
    """Enter a piece and its tokens into an empty slot of the memo, emptied first if it is full."""
    if memo.used[0] + 1 >= len(memo.prints):
        memo.slots[:] = -1
        memo.used[0] = 0
        slot = seen & (len(memo.slots) - 1)
    entry = memo.used[0]
    memo.slots[slot] = entry
    memo.prints[entry] = seen
    for at in range(start, stop):
        memo.data[memo.ends[entry] + at - start] = text[at]
    for step in range(number):
        memo.tokens[memo.token_ends[entry] + step] = tokens[step]
    memo.ends[entry + 1] = memo.ends[entry] + stop - start
    memo.token_ends[entry + 1] = memo.token_ends[entry] + number
    memo.used[0] += 1


@compiled
def _encode(
    text: Bytes,
    start: Number,
    stop: Number,
    classes: Bytes,
    superwords: bool,
    ranks: Ranks,
    memo: Memo,
    scratch: Scratch,
    result: Short,
    written: Number,
) -> tuple[Number, Number, Number]:
    """Write the tokens of one text; gives back (how many stand in `result`, where it stopped, and 0 or the length of
    the piece there that is too long for the scratch)."""
    at = start
    while at < stop:
        end = piece_end(text, at, stop, classes, superwords)
        if end - at > len(scratch.tokens):
            return written, at, end - at
        brief = end - at <= MEMO_BYTES
        seen = fingerprint(text, at, end) if brief else np.int64(0)
        slot = _find(text, at, end, seen, memo) if brief else 0
        entry = memo.slots[slot] if brief else np.int32(-1)
        if entry < 0:
            number = _merged(text, at, end, ranks, scratch)
            for step in range(number):
                result[written + step] = scratch.tokens[step]
            written += number
            if brief:
                _keep(text, at, end, seen, slot, memo, scratch.tokens, number)
        else:
            for step in range(memo.token_ends[entry], memo.token_ends[entry + 1]):
                result[written] = memo.tokens[step]
                written += 1
        at = end
    return written, at, 0


@compiled
def _encode_all(
    text: Bytes,
    ends: Integers,
    classes: Bytes,
    superwords: bool,
    ranks: Ranks,
    memo: Memo,
    scratch: Scratch,
    result: Short,
    result_ends: Integers,
    at: Integers,
) -> Number:
    """Encode texts from text `at[0]`, byte `at[1]` on with `at[2]` tokens written; gives back the longest piece there
    is no room for."""
    while at[0] < len(ends):
        at[2], at[1], long = _encode(text, at[1], ends[at[0]], classes, superwords, ranks, memo, scratch, result, at[2])
        if long:
            return long
        result_ends[at[0]] = at[2]
        at[0] += 1
    return 0


class Encoder:
    """One thread's memo and scratch over the shared table of merges."""

    def __init__(self, ranks: Ranks, superwords: bool) -> None:
        self.ranks, self.superwords = ranks, superwords
        pieces = MEMO_PIECES
        self.memo = Memo(
            slots=np.full(2 * pieces, -1, dtype=np.int32),
            prints=np.empty(pieces, dtype=np.int64),
            ends=np.zeros(pieces + 1, dtype=np.int64),
            token_ends=np.zeros(pieces + 1, dtype=np.int64),
            data=np.empty(pieces * MEMO_BYTES, dtype=np.uint8),
            tokens=np.empty(pieces * MEMO_BYTES, dtype=np.int32),
            used=np.zeros(1, dtype=np.int64),
        )  # fmt: skip  (the system gives pages as they are written)
        self._make_scratch(256)

    def _make_scratch(self, size: int) -> None:
        tokens, after, before = (np.empty(size, dtype=np.int32) for _ in range(3))
        self.scratch = Scratch(
            tokens, np.empty(size, dtype=np.int64), after, before, np.empty(3 * size, dtype=np.int64)
        )

    def encode(self, text: Bytes, ends: Integers, classes: Bytes) -> tuple[Short, Integers]:
        """(the tokens of texts that lie one after another, where each text's end); `ends` are those of the texts."""
        result, result_ends = np.empty(len(text), dtype=np.int32), np.empty(len(ends), dtype=np.int64)
        at = np.zeros(3, dtype=np.int64)
        while longest := _encode_all(
            text, ends, classes, self.superwords, self.ranks, self.memo, self.scratch, result, result_ends, at
        ):
            self._make_scratch(2 * longest)
        return result[: at[2]], result_ends
