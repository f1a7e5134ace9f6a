"""Where each pair of neighbours stands: the places of all pieces' symbols, in linked lists by pair.

All pieces lie in one array, a symbol a byte at first. Each place belongs to the list of the places with its pair,
linked through arrays as in Re-Pair (Larsson & Moffat 1999), so a place leaves one list and enters another in constant
time, and no place is looked at that does not change. A token stands at its first place, the others of its places are
idle; how many it has, at most 63, is noted in a byte at its first and last place, which finds both neighbours. Per
symbol all that is 13 bytes, whatever the vocabulary; per live pair 32 to 42 with the hash table's gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import Number, compiled
from lmforge.tokens.pretokenize import Bytes

Integers = NDArray[np.int64]
Short = NDArray[np.int32]
LONGEST = 64  # a token has fewer bytes: lines of dashes would otherwise fill a small vocabulary
EMPTY = -1
PAIRS = 1  # the place in `used` of the number of pairs
EVERY = 5  # log2 of the places from one entry of `Text.pieces` to the next
_SPAN, _ENDS, _BEGINS = 63, 64, 128  # the bits of `Text.spans`


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


@compiled
def slot_of(keys: Integers, key: Number) -> Number:
    size = len(keys)  # any: growing by less than doubling leaves fewer gaps
    slot: Number = np.int64(
        (((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
    )
    while keys[slot] != key and keys[slot] != EMPTY:
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
    block = at >> EVERY
    piece = text.pieces[block]
    for place in range((block << EVERY) + 1, at + 1):
        piece += text.spans[place] >> 7
    return text.weights[piece]


@compiled
def _add(text: Text, pairs: Pairs, used: Integers, at: Number, left: Number, right: Number, weight: Number) -> Number:
    """Put a place into its pair's list; gives back the pair's slot."""
    key = np.int64(left) << 32 | right
    slot = slot_of(pairs.keys, key)
    if pairs.keys[slot] == EMPTY:
        pairs.keys[slot] = key
        pairs.heads[slot] = -1
        used[PAIRS] += 1
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
    slot = slot_of(pairs.keys, np.int64(left) << 32 | right)
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
def token_size(ends: Integers, token: Number) -> Number:
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
    if previous >= 0 and token_size(ends, text.symbols[previous]) + token_size(ends, left) < LONGEST:
        _remove(text, pairs, previous, text.symbols[previous], left, weight)
    if following >= 0 and token_size(ends, right) + token_size(ends, text.symbols[following]) < LONGEST:
        _remove(text, pairs, middle, right, text.symbols[following], weight)
    text.symbols[at], text.symbols[middle] = new, -1
    places = (text.spans[at] & _SPAN) + (text.spans[middle] & _SPAN)
    last = at + places - 1
    text.spans[at] = places | (text.spans[at] & _BEGINS)
    text.spans[last] = places | (text.spans[last] & _ENDS)
    if previous >= 0 and token_size(ends, text.symbols[previous]) + token_size(ends, new) < LONGEST:
        slot = _add(text, pairs, used, previous, text.symbols[previous], new, weight)
        if every or pairs.places[slot] == 1:
            touched[number] = slot
            number += 1
    if following >= 0 and token_size(ends, new) + token_size(ends, text.symbols[following]) < LONGEST:
        slot = _add(text, pairs, used, at, new, text.symbols[following], weight)
        if every or pairs.places[slot] == 1:
            touched[number] = slot
            number += 1
    return number


@compiled
def replace_all(
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
def link(text: Text, pairs: Pairs, ends: Integers, used: Integers, at: Number) -> Number:
    """Put the places before `at` into their lists, from the last on; gives back how many are left: more than 0 where
    pairs ran out."""
    while at > 0:
        if 4 * (used[PAIRS] + 1) > 3 * len(pairs.keys):
            return at
        at -= 1
        following = _after(text, at)
        if following >= 0 and token_size(ends, text.symbols[at]) + token_size(ends, text.symbols[following]) < LONGEST:
            _add(text, pairs, used, at, text.symbols[at], text.symbols[following], _weight(text, at))
    return at


@compiled
def move_pairs(old: Pairs, new: Pairs) -> Number:
    """Enter the pairs that still stand somewhere into a larger table; gives back their number."""
    number = 0
    for slot in range(len(old.keys)):
        if old.keys[slot] != EMPTY and old.places[slot] > 0:
            to = slot_of(new.keys, old.keys[slot])
            new.keys[to], new.counts[to] = old.keys[slot], old.counts[slot]
            new.heads[to], new.places[to] = old.heads[slot], old.places[slot]
            number += 1
    return number


@compiled
def lay_out(piece_ends: Integers, text: Text) -> None:
    """Spans of the symbols of pieces that end at `piece_ends`, and the pieces' numbers."""
    start = 0
    for piece in range(len(piece_ends)):
        stop = piece_ends[piece]
        for at in range(start, stop):
            text.spans[at] = 1 | (_BEGINS if at == start else 0) | (_ENDS if at + 1 == stop else 0)
            if at & ((1 << EVERY) - 1) == 0:
                text.pieces[at >> EVERY] = piece
        start = stop


def empty_pairs(size: int) -> Pairs:
    return Pairs(
        np.full(size, EMPTY, dtype=np.int64),
        np.zeros(size, dtype=np.int64),
        np.full(size, -1, dtype=np.int32),
        np.zeros(size, dtype=np.int32),
    )
