"""BPE learned from counted pieces (Sennrich et al. 2016, algorithm 1), each merge touching only the places where its
pair stands.

    again and again: the pair of neighbours with the highest count, of equal ones the one with the lowest ids, becomes a
    token

All pieces lie in one array, a symbol a byte at first. Each place belongs to the list of the places with its pair,
linked through arrays as in Re-Pair (Larsson & Moffat 1999), so a place leaves one list and enters another in constant
time, and no place is looked at that does not change. A token stands at its first place, the others of its places are
idle; how many it has, at most 63, is noted in a byte at its first and last place, which finds both neighbours. Per
symbol all that is 13 bytes, whatever the vocabulary; per live pair 32 to 42 with the hash table's gaps. A heap holds
(count, pair); counts only fall after an entry was made, so an entry whose count is out of date is put back with the
present one when it comes up.

Counts are those of neighbours, so "aaa" counts ("a", "a") twice and merges it once, as in `tokenizers`; they are 64-bit
integers. Two merges may make the same bytes; they share one token, and a pair that thus comes up again keeps the place
of its first merge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import Number, compiled
from lmforge.errors import InputError
from lmforge.tokens.pretokenize import Bytes, fingerprint

Integers = NDArray[np.int64]
Short = NDArray[np.int32]
LONGEST = 64  # a token has fewer bytes: lines of dashes would otherwise fill a small vocabulary
MOST_SYMBOLS = (1 << 31) - 1  # places are 32-bit
_EMPTY = -1
_DONE, _PAUSED, _MORE_PAIRS, _MORE_QUEUE, _MORE_BYTES, _EXHAUSTED = range(6)
_FIRST_PAIRS = 1 << 17
_PAUSE = 20_000  # merges between looks at the keyboard and the progress bar
_TOKENS, _PAIRS, _QUEUED, _MERGES = range(4)  # what `used` counts
_SPAN, _ENDS, _BEGINS = 63, 64, 128  # the bits of `Text.spans`
_EVERY = 5  # log2 of the places from one entry of `Text.pieces` to the next


class Text(NamedTuple):
    """For each place its symbol, the next and last place with the same pair, and `spans`: at the first and last place
    of a token how many it has, and whether a piece begins or ends there. `pieces` numbers the piece of every 32nd
    place."""

    symbols: Short
    later: Short
    earlier: Short
    spans: Bytes
    pieces: Short
    weights: Integers  # (pieces,)


class Pairs(NamedTuple):
    """A hash table: pair → its count, its first place, the number of its places."""

    keys: Integers  # left << 32 | right
    counts: Integers
    heads: Short
    places: Short


class Vocabulary(NamedTuple):
    """Tokens' bytes one after another, where each ends, and a hash table from bytes to token."""

    data: Bytes
    ends: Integers
    slots: Short


class Queue(NamedTuple):
    """A binary heap: highest count first, then lowest pair."""

    counts: Integers
    keys: Integers


@compiled
def _slot(keys: Integers, key: Number) -> Number:
    size = len(keys)  # any: growing by less than doubling leaves fewer gaps
    slot: Number = np.int64(
        (((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
    )
    while keys[slot] != key and keys[slot] != _EMPTY:
        slot = slot + 1 if slot + 1 < size else 0
    return slot


@compiled
def _after(text: Text, at: Number) -> Number:
    """The place of the token after that at `at`; -1 at the end of its piece."""
    last = at + (text.spans[at] & _SPAN) - 1
    return -1 if text.spans[last] & _ENDS else last + 1


@compiled
def _before(text: Text, at: Number) -> Number:
    """The place of the token before that at `at`; -1 at the beginning of its piece."""
    return -1 if text.spans[at] & _BEGINS else at - (text.spans[at - 1] & _SPAN)


@compiled
def _weight(text: Text, at: Number) -> Number:
    """How often the piece of a place occurs."""
    block = at >> _EVERY
    piece = text.pieces[block]
    for place in range((block << _EVERY) + 1, at + 1):
        piece += text.spans[place] >> 7
    return text.weights[piece]


@compiled
def _add(text: Text, pairs: Pairs, used: Integers, at: Number, left: Number, right: Number, weight: Number) -> Number:
    """Put a place into its pair's list; gives back the pair's slot."""
    key = np.int64(left) << 32 | right
    slot = _slot(pairs.keys, key)
    if pairs.keys[slot] == _EMPTY:
        pairs.keys[slot] = key
        pairs.heads[slot] = -1
        used[_PAIRS] += 1
    head = pairs.heads[slot]
    text.later[at] = head
    text.earlier[at] = -1
    if head >= 0:
        text.earlier[head] = at
    pairs.heads[slot] = at
    pairs.counts[slot] += weight
    pairs.places[slot] += 1
    return slot


@compiled
def _remove(text: Text, pairs: Pairs, at: Number, left: Number, right: Number, weight: Number) -> None:
    """Take a place out of its pair's list."""
    slot = _slot(pairs.keys, np.int64(left) << 32 | right)
    earlier, later = text.earlier[at], text.later[at]
    if earlier >= 0:
        text.later[earlier] = later
    else:
        pairs.heads[slot] = later
    if later >= 0:
        text.earlier[later] = earlier
    pairs.counts[slot] -= weight
    pairs.places[slot] -= 1


@compiled
def _size(ends: Integers, token: Number) -> Number:
    return ends[token] - ends[token - 1] if token else ends[0]


@compiled
def _replace(
    text: Text,
    pairs: Pairs,
    ends: Integers,
    used: Integers,
    at: Number,
    new: Number,
    every: bool,
    touched: Integers,
    number: Number,
) -> Number:
    """Make one token of the place `at` and its neighbour; notes, after the first `number`, the slots of pairs that this
    adds to: of those that were nowhere before, or of `every` one."""
    middle = _after(text, at)
    previous, following = _before(text, at), _after(text, middle)
    left, right = text.symbols[at], text.symbols[middle]
    weight = _weight(text, at)
    _remove(text, pairs, at, left, right, weight)
    if previous >= 0 and _size(ends, text.symbols[previous]) + _size(ends, left) < LONGEST:
        _remove(text, pairs, previous, text.symbols[previous], left, weight)
    if following >= 0 and _size(ends, right) + _size(ends, text.symbols[following]) < LONGEST:
        _remove(text, pairs, middle, right, text.symbols[following], weight)
    text.symbols[at], text.symbols[middle] = new, -1
    places = (text.spans[at] & _SPAN) + (text.spans[middle] & _SPAN)
    last = at + places - 1
    text.spans[at] = places | (text.spans[at] & _BEGINS)
    text.spans[last] = places | (text.spans[last] & _ENDS)
    if previous >= 0 and _size(ends, text.symbols[previous]) + _size(ends, new) < LONGEST:
        slot = _add(text, pairs, used, previous, text.symbols[previous], new, weight)
        if every or pairs.places[slot] == 1:
            touched[number] = slot
            number += 1
    if following >= 0 and _size(ends, new) + _size(ends, text.symbols[following]) < LONGEST:
        slot = _add(text, pairs, used, at, new, text.symbols[following], weight)
        if every or pairs.places[slot] == 1:
            touched[number] = slot
            number += 1
    return number


@compiled
def _replace_all(
    text: Text, pairs: Pairs, ends: Integers, used: Integers, slot: Number, new: Number, every: bool, touched: Integers
) -> Number:
    """Merge a pair wherever it stands; gives back how many slots it noted in `touched`."""
    left, right = np.int32(pairs.keys[slot] >> 32), np.int32(pairs.keys[slot] & 0xFFFFFFFF)
    number = 0
    while pairs.heads[slot] >= 0:
        at = pairs.heads[slot]
        if left != right:
            number = _replace(text, pairs, ends, used, at, new, every, touched, number)
            continue
        while _before(text, at) >= 0 and text.symbols[_before(text, at)] == left:  # "aaa" is merged from its left
            at = _before(text, at)
        while at >= 0 and text.symbols[at] == left and _after(text, at) >= 0 and text.symbols[_after(text, at)] == left:
            number = _replace(text, pairs, ends, used, at, new, every, touched, number)
            at = _after(text, at)
    return number


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
def _token(words: Vocabulary, used: Integers, left: Number, right: Number) -> Number:
    """The token that has the bytes of `left` and `right`, made if there is none."""
    tokens = used[_TOKENS]
    start = at = words.ends[tokens - 1]
    for part in (left, right):
        for source in range(words.ends[part] - _size(words.ends, part), words.ends[part]):
            words.data[at] = words.data[source]
            at += 1
    mask = len(words.slots) - 1
    slot = fingerprint(words.data, start, at) & mask
    while words.slots[slot] >= 0:
        other = words.slots[slot]
        first = words.ends[other] - _size(words.ends, other)
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
def _place_tokens(words: Vocabulary, first: Number, tokens: Number) -> None:
    """Enter the tokens from `first` on into the hash table."""
    mask = len(words.slots) - 1
    for token in range(first, tokens):
        slot = fingerprint(words.data, words.ends[token] - _size(words.ends, token), words.ends[token]) & mask
        while words.slots[slot] >= 0:
            slot = (slot + 1) & mask
        words.slots[slot] = token


@compiled
def _merge_some(
    text: Text,
    pairs: Pairs,
    words: Vocabulary,
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
            slot = _slot(pairs.keys, key)
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
        if 4 * (used[_PAIRS] + min(room, 2 * used[_TOKENS] + 2)) > 3 * len(pairs.keys):
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
        number = _replace_all(text, pairs, words.ends, used, slot, new, new < tokens, touched)
        for step in range(number):
            if pairs.counts[touched[step]] >= 2:
                _push(queue, used, pairs.counts[touched[step]], pairs.keys[touched[step]])
    return _PAUSED


@compiled
def _link(text: Text, pairs: Pairs, ends: Integers, used: Integers, at: Number) -> Number:
    """Put the places before `at` into their lists, from the last on; gives back how many are left: more than 0 where
    pairs ran out."""
    while at > 0:
        if 4 * (used[_PAIRS] + 1) > 3 * len(pairs.keys):
            return at
        at -= 1
        following = _after(text, at)
        if following >= 0 and _size(ends, text.symbols[at]) + _size(ends, text.symbols[following]) < LONGEST:
            _add(text, pairs, used, at, text.symbols[at], text.symbols[following], _weight(text, at))
    return at


@compiled
def _move(old: Pairs, new: Pairs) -> Number:
    """Enter the pairs that still stand somewhere into a larger table; gives back their number."""
    number = 0
    for slot in range(len(old.keys)):
        if old.keys[slot] != _EMPTY and old.places[slot] > 0:
            to = _slot(new.keys, old.keys[slot])
            new.keys[to], new.counts[to] = old.keys[slot], old.counts[slot]
            new.heads[to], new.places[to] = old.heads[slot], old.places[slot]
            number += 1
    return number


@compiled
def _queue_all(pairs: Pairs, queue: Queue, used: Integers) -> None:
    for slot in range(len(pairs.keys)):
        if pairs.keys[slot] != _EMPTY and pairs.counts[slot] >= 2:
            _push(queue, used, pairs.counts[slot], pairs.keys[slot])


@compiled
def _lay_out(piece_ends: Integers, text: Text) -> None:
    """Spans of the symbols of pieces that end at `piece_ends`, and the pieces' numbers."""
    start = 0
    for piece in range(len(piece_ends)):
        stop = piece_ends[piece]
        for at in range(start, stop):
            text.spans[at] = 1 | (_BEGINS if at == start else 0) | (_ENDS if at + 1 == stop else 0)
            if at & ((1 << _EVERY) - 1) == 0:
                text.pieces[at >> _EVERY] = piece
        start = stop


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
        numbers = np.empty((len(symbols) >> _EVERY) + 1, dtype=np.int32)
        self.text = Text(symbols, later, earlier, np.empty(len(symbols), dtype=np.uint8), numbers, weights)
        _lay_out(piece_ends, self.text)
        tokens = len(known.ends)
        self.used = np.array([tokens, 0, 0, len(known.merges)], dtype=np.int64)
        ends = np.empty(max(vocab_size, tokens) + 1, dtype=np.int64)
        ends[:tokens] = known.ends
        slots = np.full(1 << int(2 * len(ends)).bit_length(), -1, dtype=np.int32)
        self.words = Vocabulary(np.concatenate([known.data, np.empty(1 << 16, dtype=np.uint8)]), ends, slots)
        _place_tokens(self.words, 0, tokens)
        self.special = known.special
        self.merges = np.concatenate([known.merges, np.empty((1 << 12, 3), dtype=np.int32)])
        self.pairs = _empty_pairs(_FIRST_PAIRS)
        self.queue = Queue(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        self.touched = np.empty(1 << 12, dtype=np.int64)
        self._link_all()

    def _link_all(self) -> None:
        at = len(self.text.symbols)
        while (at := _link(self.text, self.pairs, self.words.ends, self.used, at)) > 0:
            self._more_pairs(2 * len(self.pairs.keys))
        often = int(np.count_nonzero(self.pairs.counts >= 2))
        self.queue = Queue(np.empty(often + 4096, dtype=np.int64), np.empty(often + 4096, dtype=np.int64))
        _queue_all(self.pairs, self.queue, self.used)

    def _more_pairs(self, size: int) -> None:
        old, self.pairs = self.pairs, _empty_pairs(size)
        self.used[_PAIRS] = _move(old, self.pairs)

    def _make_room(self, reason: int) -> None:
        """Room for the merge at the top of the queue, and for as much again as there is."""
        key = self.queue.keys[0]
        room = 2 * int(self.pairs.places[_slot(self.pairs.keys, key)])
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


def _empty_pairs(size: int) -> Pairs:
    return Pairs(
        np.full(size, _EMPTY, dtype=np.int64),
        np.zeros(size, dtype=np.int64),
        np.full(size, -1, dtype=np.int32),
        np.zeros(size, dtype=np.int32),
    )
