"""Every epoch has every token once, every row is full, and any row is found without those before it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.tokens.packing import BestFit, Ring, Whole, pack, permute

KEYS = st.tuples(*[st.integers(0, 2**64 - 1)] * 6)
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=60)


def best_fit(lengths: list[int], context: int, seed: int = 1, block_rows: int = 4) -> BestFit:
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return BestFit(
        sum(lengths), lambda first, stop: starts[(starts >= first) & (starts < stop)], context, seed, 0, block_rows
    )


@given(st.integers(1, 600), KEYS)
def test_the_permutation_takes_every_place_once(size: int, keys: tuple[int, ...]) -> None:
    assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


@given(st.integers(1, 2**48), KEYS, st.data())
def test_the_permutation_of_a_huge_range_stays_in_it(size: int, keys: tuple[int, ...], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, size - 1))
    assert 0 <= permute(np.array([place]), size, keys)[0] < size


def test_the_permutation_mixes() -> None:
    size, keys = 10_000, (11, 22, 33, 44, 55, 66)
    order = permute(np.arange(size), size, keys)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    steps = np.diff(order)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.05  # what independent places give
    assert np.mean(np.abs(steps) < size / 100) < 0.04


def test_the_permutation_is_the_one_of_earlier_runs() -> None:
    assert permute(np.arange(10), 10, (11, 22, 33, 44, 55, 66)).tolist() == [1, 7, 0, 3, 5, 6, 8, 4, 9, 2]


@given(st.integers(1, 2000), st.integers(1, 100), st.integers(0, 2**70), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_of_a_ring_visits_every_row_once(tokens: int, context: int, seed: int, epoch: int) -> None:
    ring = Ring(tokens, context, seed)
    pieces = ring.pieces(np.arange(epoch * ring.rows, (epoch + 1) * ring.rows))
    covered = (pieces.start[:, None] + np.arange(context)) % tokens
    if tokens >= context:  # laid round the ring from the epoch's first cut, the rows neither overlap nor leave a gap
        assert len(np.unique(covered)) == covered.size == ring.rows * context
        assert tokens - covered.size < context
    assert pieces.row.tolist() == list(range(ring.rows))


def test_seeds_epochs_and_groups_give_different_orders_and_cuts() -> None:
    rings = [Ring(1003, 8, 1), Ring(1003, 8, 2), Ring(1003, 8, 1, group=1)]
    orders = [tuple(ring.pieces(np.arange(125) + epoch * 125).start) for ring in rings for epoch in (0, 1)]
    assert len(set(orders)) == 6
    # rows begin elsewhere in each epoch
    assert len({rings[0].pieces(np.array([epoch * 125])).start[0] % 8 for epoch in range(30)}) > 4


@given(LENGTHS, st.integers(1, 40), st.integers(0, 9), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_epoch_of_best_fit_has_every_token_once(
    lengths: list[int], context: int, epoch: int, block_rows: int
) -> None:
    order = best_fit(lengths, context, block_rows=block_rows)
    tokens = sum(lengths)
    numbers = np.arange(epoch * order.rows, (epoch + 1) * order.rows)
    pieces = order.pieces(numbers)
    assert np.bincount(pieces.row, pieces.length, order.rows).tolist() == [context] * order.rows  # every row is full
    covered = np.concatenate(
        [(start + np.arange(length)) % tokens for start, length in zip(pieces.start, pieces.length, strict=True)]
    )
    if tokens >= context:
        assert len(np.unique(covered)) == covered.size
        assert tokens - covered.size < context * (order.blocks + 1)
    edges = {*np.cumsum(lengths).tolist(), 0}
    # a piece has parts of one document alone
    for start, length in zip(pieces.start.tolist(), pieces.length.tolist(), strict=True):
        assert not edges & {place % tokens for place in range(start + 1, start + length)}


@given(LENGTHS, st.integers(1, 40), st.lists(st.integers(0, 500), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_a_row_of_best_fit_does_not_depend_on_what_was_asked_before(
    lengths: list[int], context: int, numbers: list[int]
) -> None:
    together = best_fit(lengths, context).pieces(np.array(numbers))
    for place, number in enumerate(numbers):
        alone = best_fit(lengths, context).pieces(np.array([number]))
        mine = together.row == place
        assert alone.start.tolist() == together.start[mine].tolist()
        assert alone.length.tolist() == together.length[mine].tolist()


@given(LENGTHS, st.integers(1, 40))
def test_packing_fills_every_row_and_loses_nothing(lengths: list[int], context: int) -> None:
    lengths = [*lengths, -sum(lengths) % context or context]
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    rows = pack(starts, np.array(lengths), sum(lengths) // context, context)
    assert np.bincount(rows.row, rows.length).tolist() == [context] * (sum(lengths) // context)
    pieces = zip(rows.start.tolist(), rows.length.tolist(), strict=True)
    assert sorted(place for start, length in pieces for place in range(start, start + length)) == list(
        range(sum(lengths))
    )


def test_documents_that_fit_stay_whole() -> None:
    # 30 + 34, 40 + 24, 50 + 14 fill three rows; nothing need be cut.
    lengths = np.array([24, 50, 30, 14, 40, 34])
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    rows = pack(starts, lengths, 3, 64)
    assert sorted(sorted(rows.length[rows.row == row].tolist()) for row in range(3)) == [[14, 50], [24, 40], [30, 34]]


def test_few_documents_are_cut_where_a_ring_cuts_many() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5, 1, 4000).astype(int), 2, 1024).tolist()
    order = best_fit(lengths, 1024, block_rows=256)
    pieces = order.pieces(np.arange(order.rows))
    begins = np.cumsum(lengths) - lengths
    whole = {*zip(begins.tolist(), lengths, strict=True)} & {
        *zip(pieces.start.tolist(), pieces.length.tolist(), strict=True)
    }
    cut_by_ring = order.rows / len(lengths)
    assert cut_by_ring > 0.2
    assert 1 - len(whole) / len(lengths) < 0.05 * cut_by_ring


@pytest.mark.parametrize("tokens", [1, 5, 9])
def test_a_group_smaller_than_a_row_fills_it_by_going_round(tokens: int) -> None:
    for order in (Ring(tokens, 8, 1), best_fit([1] * tokens, 8)):
        pieces = order.pieces(np.arange(3))
        assert np.bincount(pieces.row, pieces.length).tolist() == [8, 8, 8]
        assert (pieces.start < tokens).all()


def test_memory_stays_flat_over_blocks_and_epochs() -> None:
    """Of 8 blocks an epoch, only what the last rows asked for is held: not a plan more after 40 blocks than after
    one."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4, 1, 20_000).astype(int), 2, 512).tolist()
    order = best_fit(lengths, 64, block_rows=sum(lengths) // 64 // 8)
    held = []
    tracemalloc.start()
    try:
        for block in range(41):
            order.pieces(np.arange(block * order.block_rows, block * order.block_rows + 8))
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert order.blocks == 8
    plan = max(held[0], 50_000)
    assert max(held) - held[0] < 0.2 * plan
    assert set(order._plans) == {40}
    order.pieces(np.array([order.block_rows - 1, order.block_rows]))  # a batch across two blocks holds both
    assert set(order._plans) == {0, 1}


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    context=st.integers(8, 48),
    seed=st.integers(0, 99),
    group=st.integers(0, 3),
)
def test_whole_documents_stand_in_one_row_of_each_epoch(
    lengths: list[int], context: int, seed: int, group: int
) -> None:
    sizes = np.array(lengths)
    starts = np.cumsum(sizes) - sizes
    order = Whole(starts, sizes, context, seed, group)
    fitting = np.flatnonzero(sizes <= context)
    assert order.left_out.tolist() == np.flatnonzero(sizes > context).tolist()
    assert order.rows <= len(fitting)
    for epoch in (0, 1, 7):
        pieces = order.pieces(np.arange(order.rows) + epoch * order.rows)
        assert sorted(pieces.start.tolist()) == starts[fitting].tolist()
        of_start = dict(zip(starts.tolist(), lengths, strict=True))
        assert all(of_start[start] == length for start, length in zip(pieces.start, pieces.length, strict=True))
        filled = np.bincount(pieces.row, weights=pieces.length, minlength=order.rows)
        assert ((filled > 0) & (filled <= context)).all()
        # best fit: no two rows would go into one
        least = np.sort(filled)[:2]
        assert len(least) < 2 or least.sum() > context
        some = np.arange(order.rows)[::3] + epoch * order.rows
        alone = Whole(starts, sizes, context, seed, group).pieces(some)
        for at, number in enumerate(some.tolist()):
            mine = pieces.start[pieces.row == number - epoch * order.rows]
            assert alone.start[alone.row == at].tolist() == mine.tolist()


def test_epochs_put_other_documents_together() -> None:
    sizes = np.full(64, 10)
    order = Whole(np.arange(64) * 10, sizes, 40, 1)
    one, two = (order.pieces(np.arange(16) + epoch * 16).start.reshape(16, 4) for epoch in (0, 1))
    assert {frozenset(row) for row in one.tolist()} != {frozenset(row) for row in two.tolist()}
