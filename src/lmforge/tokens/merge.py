"""BPE learned from counted pieces (Sennrich et al. 2016, algorithm 1), each merge touching only the places where its
pair stands.

    again and again: the pair of neighbours with the highest count, of equal ones the one with the lowest ids, becomes a
    token

Where pairs stand is in `lmforge.tokens.pair_places`. A heap holds (count, pair); counts only fall after an entry was
made, so an entry whose count is out of date is put back with the present one when it comes up.

Counts are those of neighbours, so "aaa" counts ("a", "a") twice and merges it once, as in `tokenizers`; they are 64-bit
integers. Two merges may make the same bytes; they share one token, and a pair that thus comes up again keeps the place
of its first merge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lmforge.compiled import Number, compiled
from lmforge.errors import InputError
from lmforge.tokens.pair_places import (
    EMPTY,
    EVERY,
    LONGEST,
    PAIRS,
    Integers,
    Pairs,
    Short,
    Text,
    empty_pairs,
    lay_out,
    link,
    move_pairs,
    replace_all,
    slot_of,
    token_size,
)
from lmforge.tokens.pretokenize import Bytes, fingerprint

MOST_SYMBOLS = (1 << 31) - 1  # places are 32-bit
_DONE, _PAUSED, _MORE_PAIRS, _MORE_QUEUE, _MORE_BYTES, _EXHAUSTED = range(6)
_FIRST_PAIRS = 1 << 17
_PAUSE = 20_000  # merges between looks at the keyboard and the progress bar
_TOKENS, _, _QUEUED, _MERGES = range(4)  # what `used` counts; the second is PAIRS


class LearnedVocabulary(NamedTuple):
    """Tokens' bytes one after another, where each ends, and a hash table from bytes to token."""

    data: Bytes
    ends: Integers
    slots: Short


class Queue(NamedTuple):
    """A binary heap: highest count first, then lowest pair."""

    counts: Integers
    keys: Integers


@compiled
def _comes_first(queue: Queue, one: Number, other: Number) -> Number:
    if queue.counts[one] != queue.counts[other]:
        return queue.counts[one] > queue.counts[other]
    return queue.keys[one] < queue.keys[other]


@compiled
def _swap(queue: Queue, one: Number, other: Number) -> None:
    queue.counts[one], queue.counts[other] = queue.counts[other], queue.counts[one]
    queue.keys[one], queue.keys[other] = queue.keys[other], queue.keys[one]


@compiled
def _push(queue: Queue, used: Integers, count: Number, key: Number) -> None:
    at = used[_QUEUED]
    queue.counts[at], queue.keys[at] = count, key
    used[_QUEUED] += 1
    while at > 0 and _comes_first(queue, at, (at - 1) >> 1):
        _swap(queue, at, (at - 1) >> 1)
        at = (at - 1) >> 1


@compiled
def _sink(queue: Queue, size: Number) -> None:
    """Put the top where it belongs."""
    at = 0
    while True:
        best = at
        for child in (2 * at + 1, 2 * at + 2):
            if child < size and _comes_first(queue, child, best):
                best = child
        if best == at:
            return
        _swap(queue, at, best)
        at = best


@compiled
def _pop(queue: Queue, used: Integers) -> None:
    used[_QUEUED] -= 1
    _swap(queue, 0, used[_QUEUED])
    _sink(queue, used[_QUEUED])


@compiled
def _token(words: LearnedVocabulary, used: Integers, left: Number, right: Number) -> Number:
    """The token that has the bytes of `left` and `right`, made if there is none."""
    tokens = used[_TOKENS]
    start = at = words.ends[tokens - 1]
    for part in (left, right):
        for source in range(words.ends[part] - token_size(words.ends, part), words.ends[part]):
            words.data[at] = words.data[source]
            at += 1
    mask = len(words.slots) - 1
    slot = fingerprint(words.data, start, at) & mask
    while words.slots[slot] >= 0:
        other = words.slots[slot]
        first = words.ends[other] - token_size(words.ends, other)
        same = words.ends[other] - first == at - start
        if same:
            for step in range(at - start):
                if words.data[first + step] != words.data[start + step]:
                    same = False
                    break
        if same:
            return other
        slot = (slot + 1) & mask
    words.slots[slot] = tokens
    words.ends[tokens] = at
    used[_TOKENS] += 1
    return tokens


@compiled
def _place_tokens(words: LearnedVocabulary, first: Number, tokens: Number) -> None:
    """Enter the tokens from `first` on into the hash table."""
    mask = len(words.slots) - 1
    for token in range(first, tokens):
        slot = fingerprint(words.data, words.ends[token] - token_size(words.ends, token), words.ends[token]) & mask
        while words.slots[slot] >= 0:
            slot = (slot + 1) & mask
        words.slots[slot] = token


@compiled
def _merge_some(
    text: Text,
    pairs: Pairs,
    words: LearnedVocabulary,
    queue: Queue,
    merges: Short,
    used: Integers,
    touched: Integers,
    special: Number,
    vocab_size: Number,
    most: Number,
) -> Number:
    """Up to `most` merges; gives back why it stopped. Nothing is begun for which an array has no room."""
    for _ in range(most):
        while True:
            if used[_TOKENS] >= vocab_size:
                return _DONE
            if used[_QUEUED] == 0:
                return _EXHAUSTED
            key = queue.keys[0]
            slot = slot_of(pairs.keys, key)
            count = pairs.counts[slot] if pairs.keys[slot] == key else 0
            if count == queue.counts[0]:
                break
            if count >= 2:
                queue.counts[0] = count
                _sink(queue, used[_QUEUED])
            else:
                _pop(queue, used)
        room = 2 * pairs.places[slot]
        # a new pair has one of the tokens beside the new
        if 4 * (used[PAIRS] + min(room, 2 * used[_TOKENS] + 2)) > 3 * len(pairs.keys):
            return _MORE_PAIRS
        if used[_QUEUED] + room > len(queue.keys) or room > len(touched) or used[_MERGES] >= len(merges):
            return _MORE_QUEUE
        if words.ends[used[_TOKENS] - 1] + LONGEST > len(words.data):
            return _MORE_BYTES
        _pop(queue, used)
        left, right = np.int32(key >> 32), np.int32(key & 0xFFFFFFFF)
        tokens = used[_TOKENS]
        new = _token(words, used, left, right)
        if new < special:
            continue  # the bytes of a special token's name: that stays text
        merges[used[_MERGES], 0], merges[used[_MERGES], 1], merges[used[_MERGES], 2] = left, right, new
        used[_MERGES] += 1
        # A pair with a token that was there already may have been queued with a lower count: then it is queued again.
        number = replace_all(text, pairs, words.ends, used, slot, new, new < tokens, touched)
        for step in range(number):
            if pairs.counts[touched[step]] >= 2:
                _push(queue, used, pairs.counts[touched[step]], pairs.keys[touched[step]])
    return _PAUSED


@compiled
def _queue_all(pairs: Pairs, queue: Queue, used: Integers) -> None:
    for slot in range(len(pairs.keys)):
        if pairs.keys[slot] != EMPTY and pairs.counts[slot] >= 2:
            _push(queue, used, pairs.counts[slot], pairs.keys[slot])


@dataclass(frozen=True)
class Learned:
    """A vocabulary: the bytes of its tokens one after another, where each ends, and (merges, 3) left, right and what
    they make.

    The first `special` tokens stand for no bytes; theirs are those of their names, which no merge may make.
    """

    data: Bytes
    ends: Integers
    merges: Short
    special: int = 0


def learn(
    symbols: Short,
    piece_ends: Integers,
    weights: Integers,
    known: Learned,
    vocab_size: int,
    progress: Callable[[int], None] = lambda merges: None,
) -> Learned:
    """Add merges to the vocabulary `known` until it has `vocab_size` tokens or no pair occurs twice.

    `symbols` holds the tokens of all pieces, which end at `piece_ends` and occur `weights` times; it is overwritten.
    `progress` is called now and then with the number of merges made since its last call.

    Raises:
        InputError: 2^31 symbols or more.
    """
    if len(symbols) > MOST_SYMBOLS:
        raise InputError(
            f"tokens.sample_bytes: the distinct pieces of these texts hold {len(symbols):,} symbols, the trainer takes "
            "2^31; lower it"
        )
    return _Learner(symbols, piece_ends, weights, known, vocab_size).run(vocab_size, progress)


class _Learner:
    """The arrays, and their growth between the compiled steps."""

    def __init__(
        self, symbols: Short, piece_ends: Integers, weights: Integers, known: Learned, vocab_size: int
    ) -> None:
        later, earlier = np.empty_like(symbols), np.empty_like(symbols)
        numbers = np.empty((len(symbols) >> EVERY) + 1, dtype=np.int32)
        self.text = Text(symbols, later, earlier, np.empty(len(symbols), dtype=np.uint8), numbers, weights)
        lay_out(piece_ends, self.text)
        tokens = len(known.ends)
        self.used = np.array([tokens, 0, 0, len(known.merges)], dtype=np.int64)
        ends = np.empty(max(vocab_size, tokens) + 1, dtype=np.int64)
        ends[:tokens] = known.ends
        slots = np.full(1 << int(2 * len(ends)).bit_length(), -1, dtype=np.int32)
        self.words = LearnedVocabulary(np.concatenate([known.data, np.empty(1 << 16, dtype=np.uint8)]), ends, slots)
        _place_tokens(self.words, 0, tokens)
        self.special = known.special
        self.merges = np.concatenate([known.merges, np.empty((1 << 12, 3), dtype=np.int32)])
        self.pairs = empty_pairs(_FIRST_PAIRS)
        self.queue = Queue(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        self.touched = np.empty(1 << 12, dtype=np.int64)
        self._link_all()

    def _link_all(self) -> None:
        at = len(self.text.symbols)
        while (at := link(self.text, self.pairs, self.words.ends, self.used, at)) > 0:
            self._more_pairs(2 * len(self.pairs.keys))
        often = int(np.count_nonzero(self.pairs.counts >= 2))
        self.queue = Queue(np.empty(often + 4096, dtype=np.int64), np.empty(often + 4096, dtype=np.int64))
        _queue_all(self.pairs, self.queue, self.used)

    def _more_pairs(self, size: int) -> None:
        old, self.pairs = self.pairs, empty_pairs(size)
        self.used[PAIRS] = move_pairs(old, self.pairs)

    def _make_room(self, reason: int) -> None:
        """Room for the merge at the top of the queue, and for as much again as there is."""
        key = self.queue.keys[0]
        room = 2 * int(self.pairs.places[slot_of(self.pairs.keys, key)])
        if reason == _MORE_PAIRS:
            live = int(np.count_nonzero(self.pairs.places))
            wanted = live + min(room, 2 * int(self.used[_TOKENS]) + 2)
            self._more_pairs(7 * wanted // 4 + 64)
        elif reason == _MORE_BYTES:
            self.words = self.words._replace(
                data=np.concatenate([self.words.data, np.empty(len(self.words.data), dtype=np.uint8)])
            )
        else:
            queued = int(self.used[_QUEUED])
            if queued + room > len(self.queue.keys):
                self.queue = Queue(
                    *(
                        np.concatenate([each[:queued], np.empty(queued // 2 + room + 4096, dtype=np.int64)])
                        for each in self.queue
                    )
                )
            if room > len(self.touched):
                self.touched = np.empty(2 * room, dtype=np.int64)
            if self.used[_MERGES] >= len(self.merges):
                self.merges = np.concatenate([self.merges, np.empty_like(self.merges)])

    def run(self, vocab_size: int, progress: Callable[[int], None]) -> Learned:
        while True:
            before = int(self.used[_MERGES])
            reason = _merge_some(
                self.text,
                self.pairs,
                self.words,
                self.queue,
                self.merges,
                self.used,
                self.touched,
                self.special,
                vocab_size,
                _PAUSE,
            )
            progress(int(self.used[_MERGES]) - before)
            if reason in (_DONE, _EXHAUSTED):
                break
            if reason != _PAUSED:
                self._make_room(reason)
        tokens = int(self.used[_TOKENS])
        ends = self.words.ends[:tokens]
        merges = self.merges[: self.used[_MERGES]]
        _, first = np.unique(merges[:, 0].astype(np.int64) << 32 | merges[:, 1], return_index=True)
        return Learned(self.words.data[: ends[-1]], ends, merges[np.sort(first)], self.special)
