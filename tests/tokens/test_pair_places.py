"""Every place is in the list of its pair, whatever was merged before."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.tokens.pair_places import EVERY, Pairs, Text, empty_pairs, lay_out, link, replace_all, slot_of


def counted(pairs: Pairs) -> dict[tuple[int, int], int]:
    live = np.flatnonzero((pairs.keys >= 0) & (pairs.places > 0))
    return {(int(pairs.keys[slot] >> 32), int(pairs.keys[slot] & 0xFFFFFFFF)): int(pairs.counts[slot]) for slot in live}


def by_hand(pieces: list[tuple[list[int], int]]) -> dict[tuple[int, int], int]:
    counts: Counter[tuple[int, int]] = Counter()
    for piece, weight in pieces:
        for pair in pairwise(piece):
            counts[pair] += weight
    return dict(counts)


def merged(piece: list[int], pair: tuple[int, int], new: int) -> list[int]:
    result: list[int] = []
    at = 0
    while at < len(piece):
        both = tuple(piece[at : at + 2]) == pair
        result.append(new if both else piece[at])
        at += 2 if both else 1
    return result


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 5)), min_size=1, max_size=8),
    st.lists(st.integers(0, 20), max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_merging_keeps_the_counts_of_all_pairs(pieces: list[tuple[list[int], int]], choices: list[int]) -> None:
    symbols = np.array([symbol for piece, _ in pieces for symbol in piece], dtype=np.int32)
    ends = np.cumsum([len(piece) for piece, _ in pieces])
    text = Text(
        symbols,
        np.empty_like(symbols),
        np.empty_like(symbols),
        np.empty(len(symbols), dtype=np.uint8),
        np.empty((len(symbols) >> EVERY) + 1, dtype=np.int32),
        np.array([weight for _, weight in pieces]),
    )
    lay_out(ends, text)
    pairs, used = empty_pairs(1 << 10), np.zeros(4, dtype=np.int64)
    sizes = np.arange(1, 40)  # every token one byte: nothing is too long
    assert link(text, pairs, sizes, used, len(symbols)) == 0
    assert counted(pairs) == by_hand(pieces)
    for new, choice in enumerate(choices, start=3):
        there = sorted(counted(pairs))
        if not there:
            return
        pair = there[choice % len(there)]
        slot = slot_of(pairs.keys, np.int64(pair[0]) << 32 | pair[1])
        replace_all(text, pairs, sizes, used, slot, new, True, np.empty(1 << 10, dtype=np.int64))
        pieces = [(merged(piece, pair, new), weight) for piece, weight in pieces]
        assert counted(pairs) == by_hand(pieces)
