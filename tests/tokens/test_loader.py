"""The data order is a pure function of seed and step, the same for any number of processes."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.record import hash_file
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.loader import Loader, permute
from lmforge.tokens.shards import Shards

KEYS = st.tuples(*[st.integers(0, 2**64 - 1)] * 6)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits whose token at position i is i, so that a batch shows where it was read."""
    folder = tmp_path_factory.mktemp("tokens")
    train_tokenizer([], 257).save(folder / "tokenizer.json")
    splits = {}
    for name, tokens in (("train", 1003), ("valid", 64)):
        np.arange(tokens, dtype="<u2").tofile(folder / f"{name}-00000.bin")
        file = {"name": f"{name}-00000.bin", "tokens": tokens, "documents": 1, "bytes": tokens}
        splits[name] = {"tokens": tokens, "documents": 1, "bytes": tokens, "files": [file]}
    index = {"vocab_size": 257, "dtype": "uint16", "tokenizer_sha256": hash_file(folder / "tokenizer.json"), "splits": splits}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@given(st.integers(1, 600), KEYS)
def test_the_permutation_takes_every_place_once(size: int, keys: tuple[int, ...]) -> None:
    assert sorted(permute(place, size, keys) for place in range(size)) == list(range(size))


@given(st.integers(1, 2**48), KEYS, st.data())
def test_the_permutation_of_a_huge_range_stays_in_it(size: int, keys: tuple[int, ...], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, size - 1))
    assert 0 <= permute(place, size, keys) < size


def test_the_permutation_mixes() -> None:
    size, keys = 10_000, (11, 22, 33, 44, 55, 66)
    order = np.array([permute(place, size, keys) for place in range(size)])
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    steps = np.diff(order)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.05  # what independent places give
    assert np.mean(np.abs(steps) < size / 100) < 0.04


@given(seed=st.integers(0, 2**70), context=st.integers(1, 100), rows=st.integers(1, 9), epoch=st.integers(0, 5))
@settings(max_examples=40)
def test_every_epoch_visits_every_row_once(numbered: Path, seed: int, context: int, rows: int, epoch: int) -> None:
    loader = Loader(Shards.open(numbered, "train"), context, rows, seed)
    starts = np.array([loader.start_of(epoch * loader.rows + place) for place in range(loader.rows)])
    # Laid round the ring from the epoch's first cut, the rows neither overlap nor leave a gap.
    covered = (starts[:, None] + np.arange(context)) % 1003
    assert len(np.unique(covered)) == covered.size == loader.rows * context
    assert 1003 - covered.size < context
    assert loader.rows == 1003 // context


@given(seed=st.integers(0, 99), step=st.integers(0, 10**9))
@settings(max_examples=40)
def test_targets_are_the_next_tokens_round_the_ring(numbered: Path, seed: int, step: int) -> None:
    inputs, targets = Loader(Shards.open(numbered, "train"), 16, 5, seed).batch(step)
    assert inputs.shape == targets.shape == (5, 16)
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous
    assert np.array_equal(targets, (inputs + 1) % 1003)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])


@given(step=st.integers(0, 500), cuts=st.sets(st.integers(0, 12)))
@settings(max_examples=40)
def test_slices_put_together_are_the_batch(numbered: Path, step: int, cuts: set[int]) -> None:
    loader = Loader(Shards.open(numbered, "train"), 8, 12, 5)
    inputs, targets = loader.batch(step)
    edges = sorted(cuts | {0, 12})
    parts = [loader.batch(step, first, last - first) for first, last in pairwise(edges)]
    assert np.array_equal(np.concatenate([part[0] for part in parts]), inputs)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), targets)
    assert np.array_equal(loader.batch(step, 5)[0], inputs[5:])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 12])
def test_any_number_of_processes_sees_the_same_batch(numbered: Path, world: int) -> None:
    for step in (0, 7, 31):
        whole = Loader(Shards.open(numbered, "train"), 8, 12, 5).batch(step)[0]
        loaders = [Loader(Shards.open(numbered, "train"), 8, 12, 5) for _ in range(world)]
        shares = [loader.share(rank, world) for rank, loader in enumerate(loaders)]
        assert [row for share in shares for row in share] == list(range(12))
        parts = [loader.batch(step, share.start, len(share))[0] for loader, share in zip(loaders, shares, strict=True)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_any_step_is_found_without_the_steps_before_it(numbered: Path) -> None:
    loader = Loader(Shards.open(numbered, "train"), 8, 12, 5)
    in_order = [loader.batch(step)[0] for step in range(40)]
    for step in (39, 3, 20, 20):
        assert np.array_equal(Loader(Shards.open(numbered, "train"), 8, 12, 5).batch(step)[0], in_order[step])


def test_the_batch_size_does_not_change_the_order_of_rows(numbered: Path) -> None:
    few, many = (Loader(Shards.open(numbered, "train"), 8, rows, 5) for rows in (4, 12))
    assert np.array_equal(np.concatenate([few.batch(step)[0] for step in range(3)]), many.batch(0)[0])


def test_seeds_and_epochs_give_different_orders_and_cuts(numbered: Path) -> None:
    def starts(seed: int, epoch: int) -> list[int]:
        loader = Loader(Shards.open(numbered, "train"), 8, 12, seed)
        return [loader.start_of(epoch * loader.rows + place) for place in range(loader.rows)]

    orders = [starts(1, 0), starts(1, 1), starts(2, 0)]
    assert len({tuple(order) for order in orders}) == 3
    assert len({order[0] % 8 for order in (starts(1, epoch) for epoch in range(30))}) > 4  # rows begin elsewhere in each epoch


def test_a_corpus_smaller_than_one_batch_is_refused(numbered: Path) -> None:
    shards = Shards.open(numbered, "valid")
    assert Loader(shards, 21, 3, 1).batch(0)[0].shape == (3, 21)
    with pytest.raises(InputError, match=r"^corpus smaller than one batch: 64 tokens, needs 65; "
                                         r"lower train\.batch_tokens or tokens\.context, or add texts$"):
        Loader(shards, 16, 4, 1)


@pytest.mark.parametrize(("step", "first", "rows"), [(-1, 0, None), (0, -1, 2), (0, 3, 2), (0, 5, None), (0, 0, 5)])
def test_rows_that_a_batch_does_not_have_are_refused(numbered: Path, step: int, first: int, rows: int | None) -> None:
    with pytest.raises(IndexError, match="a batch has 4 rows"):
        Loader(Shards.open(numbered, "train"), 8, 4, 1).batch(step, first, rows)
