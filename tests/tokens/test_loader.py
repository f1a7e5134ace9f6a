"""Batches are a pure function of seed and step, the same for any number of processes, and hold the documents that they
say."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.record import hash_file
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.loader import Batch, Loader, Prefetch
from lmforge.tokens.shards import Shards
from tests.tokens.conftest import recipe, write_documents


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
    index = {
        "format": 2,
        "sources": [],
        "genres": [],
        "vocab_size": 257,
        "dtype": "uint16",
        "splits": splits,
        "tokenizer_sha256": hash_file(folder / "tokenizer.json"),
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@given(seed=st.integers(0, 99), step=st.integers(0, 10**9))
@settings(max_examples=40)
def test_targets_are_the_next_tokens_round_the_ring(numbered: Path, seed: int, step: int) -> None:
    inputs, targets, documents, _ = Loader(Shards.open(numbered, "train"), 16, 5, seed).batch(step)
    assert documents is None
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
    inputs, targets, _, _ = loader.batch(step)
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


def test_a_corpus_smaller_than_one_batch_is_refused(numbered: Path) -> None:
    shards = Shards.open(numbered, "valid")
    assert Loader(shards, 21, 3, 1).batch(0)[0].shape == (3, 21)
    with pytest.raises(
        InputError,
        match=r"^corpus smaller than one batch: 64 tokens, needs 65; "
        r"lower train\.batch_tokens or tokens\.context, or add texts$",
    ):
        Loader(shards, 16, 4, 1)


@pytest.mark.parametrize(("step", "first", "rows"), [(-1, 0, None), (0, -1, 2), (0, 3, 2), (0, 5, None), (0, 0, 5)])
def test_rows_that_a_batch_does_not_have_are_refused(numbered: Path, step: int, first: int, rows: int | None) -> None:
    with pytest.raises(IndexError, match="a batch has 4 rows"):
        Loader(Shards.open(numbered, "train"), 8, 4, 1).batch(step, first, rows)


@pytest.fixture(params=["ring", "best_fit"])
def packing(request: pytest.FixtureRequest) -> Any:
    return request.param


WEIGHTS = [[(0.0, 1.0)], [(0.0, 3.0), (0.5, 0.5)]]  # of the groups of `built`: books, code


def loader_of(built: Path, packing: Any, rows: int = 12) -> Loader:
    return Loader(Shards.open(built, "train"), 16, rows, 5, packing, WEIGHTS, 40)


def test_one_two_four_one_ranks_consume_one_runs_batches(built: Path, packing: Any) -> None:
    """A run that is stopped and gone on with on another number of ranks, each a new process that knows the step
    alone."""
    whole = [loader_of(built, packing).batch(step) for step in range(40)]
    for steps, world in ((range(10), 1), (range(10, 20), 2), (range(20, 30), 4), (range(30, 40), 1)):
        ranks = [loader_of(built, packing) for _ in range(world)]
        for step in steps:
            parts = [
                loader.batch(step, share.start, len(share))
                for loader in ranks
                for share in [loader.share(ranks.index(loader), world)]
            ]
            for name in Batch._fields:
                found = [getattr(part, name) for part in parts]
                expected = getattr(whole[step], name)
                assert (expected is None and found == [None] * world) or np.array_equal(np.concatenate(found), expected)


def test_packed_rows_are_documents_of_one_group_whole_or_in_parts(built: Path) -> None:
    shards = Shards.open(built, "train")
    loader = Loader(shards, 128, 6, 3, "best_fit")
    ends = {first: shards.read(first, length).tolist() for first, length, _ in shards.documents.tolist()}
    texts = {tuple(tokens) for tokens in ends.values()}
    whole = 0
    for step in range(5):
        inputs, targets, documents, _ = loader.batch(step)
        assert documents is not None
        assert (np.diff(documents) >= 0).all()
        for row in range(6):
            for number in np.unique(documents[row]):
                mine = documents[row] == number
                given, wanted = inputs[row, mine].tolist(), targets[row, mine].tolist()
                assert given[1:] == wanted[:-1]  # what follows, and never the next document of the row
                assert given.count(0) <= 1
                if given[0] == 0 and wanted[-1] == 0:
                    assert tuple(given) in texts
                    whole += 1
    assert whole > 20


def test_the_mixture_follows_its_weights(built: Path) -> None:
    shards = Shards.open(built, "train")
    books = shards.groups[0].tokens
    every: dict[str, float] = {}
    for name, steps in (("first", range(20)), ("second", range(20, 40))):
        loader = loader_of(built, "ring")
        groups, _ = loader.mixture.find(np.arange(steps.start * 12, steps.stop * 12))
        every[name] = float(np.mean(groups == 0))
    code = shards.groups[1].tokens
    assert every["first"] == pytest.approx(books / (books + 3 * code), abs=0.01)
    assert every["second"] == pytest.approx(books / (books + 0.5 * code), abs=0.01)


def test_tokens_that_do_not_count_are_no_targets(tmp_path: Path, packing: Any) -> None:
    documents = [
        {
            "id": str(n),
            "text": "abcdefghijklmnopqrstuvwxyz",
            "source": "s",
            "genre": "web",
            "meta": {"loss_spans": [[3, 6]]},
        }
        for n in range(40)
    ]
    write_documents(tmp_path / "corpus", dict.fromkeys(("train", "valid", "test"), documents))
    build_tokens(recipe(vocab_size=257), tmp_path / "corpus", tmp_path / "tokens")
    shards = Shards.open(tmp_path / "tokens", "train")
    letters = Tokenizer.load(tmp_path / "tokens" / "tokenizer.json").encode("def")
    loader = Loader(shards, 16, 4, 1, packing)
    for step in range(5):
        inputs, targets, _, _ = loader.batch(step)
        assert {*np.unique(targets).tolist()} <= {-1, *letters}
        counts = targets >= 0
        assert 0 < counts.sum() < counts.size
        assert np.array_equal(targets[:, :-1][counts[:, :-1]], inputs[:, 1:][counts[:, :-1]])


def test_shorter_rows_hold_the_same_tokens(built: Path, packing: Any) -> None:
    batch = loader_of(built, packing).batch(3)
    cut = batch.cut(4)
    assert cut.inputs.shape == (48, 4)
    for long, short in zip(batch, cut, strict=True):
        assert (long is None) == (short is None)
        if long is not None and short is not None:
            assert np.array_equal(long.ravel(), short.ravel())


def test_prefetched_batches_are_the_loaders(built: Path, packing: Any) -> None:
    loader = loader_of(built, packing)
    prefetch = Prefetch(loader, range(3, 9), 7, 20)
    try:
        for step in range(7, 20):
            got, expected = prefetch.take(), loader_of(built, packing).batch(step, 3, 6)
            assert prefetch.waited >= 0
            assert all(
                np.array_equal(a, b) for a, b in zip(got, expected, strict=True) if a is not None and b is not None
            )
        with pytest.raises(IndexError):
            prefetch.take()
    finally:
        prefetch.close()


def test_prefetching_holds_no_more_than_asked_and_tells_errors(built: Path) -> None:
    class Broken:
        asked = 0

        def batch(self, step: int, first: int, rows: int) -> Batch:
            self.asked += 1
            raise InputError("gone")

    broken = Broken()
    prefetch = Prefetch(broken, range(2), 0, 100, ahead=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="gone"):
        prefetch.take()
    prefetch.close()
    assert broken.asked <= 3


def test_a_far_step_is_found_at_once(built: Path, packing: Any) -> None:
    started = time.perf_counter()
    loader_of(built, packing).batch(10**6)
    assert time.perf_counter() - started < 1


def test_changing_one_packed_document_leaves_the_others_logits_alone(built: Path) -> None:
    """Bit for bit, in rows as the loader packs them."""
    inputs, _, documents, _ = Loader(Shards.open(built, "train"), 128, 6, 3, "best_fit").batch(2)
    assert documents is not None
    model = GPT(
        GPTConfig(vocab_size=300, context=128, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64, ngram_rows=64)
    )
    model.initialise(1)
    tokens, numbers = torch.from_numpy(inputs), torch.from_numpy(documents)
    assert len(np.unique(documents[0])) > 1
    with torch.inference_mode():
        before = model(tokens, documents=numbers)
        for number in np.unique(documents[0]).tolist():
            changed = tokens.clone()
            mine = numbers[0] == number
            changed[0, mine] = (changed[0, mine] + 7) % 300
            after = model(changed, documents=numbers)
            assert not torch.equal(after[0, mine], before[0, mine])
            assert torch.equal(after[0, ~mine], before[0, ~mine])
            assert torch.equal(after[1:], before[1:])


def test_a_rows_documents_are_those_its_pieces_come_from(corpus: Path, tmp_path: Path) -> None:
    build_tokens(recipe(), corpus, tmp_path / "t")
    shards = Shards.open(tmp_path / "t", "train")
    texts = [shards.read(first, length).tolist() for first, length, _ in shards.documents.tolist()]

    def within(piece: list[int], text: list[int]) -> bool:
        return any(text[at : at + len(piece)] == piece for at in range(len(text) - len(piece) + 1))

    for packing in ("best_fit", "ring"):
        loader = Loader(shards, 16, 8, 3, packing)  # type: ignore[arg-type]
        for step in (0, 5, 40):
            inputs, _, documents, _ = loader.batch(step)
            for row in range(8):
                cut = (
                    np.flatnonzero(np.diff(documents[row])) + 1
                    if documents is not None
                    else np.flatnonzero(inputs[row] == shards_end(texts))
                )
                pieces = [piece.tolist() for piece in np.split(inputs[row], cut) if len(piece)]
                found = loader.documents(step, row).tolist()
                assert all(any(within(piece, texts[number]) for number in found) for piece in pieces)
                assert all(any(within(piece, texts[number]) for piece in pieces) for number in found)


def shards_end(texts: list[list[int]]) -> int:
    """The end-of-text token, with which every document begins."""
    return texts[0][0]
