"""Examples are never cut: each stands whole in exactly one row an epoch, the rest of a row is padding that neither
counts nor is seen."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.tokens.build import build_tokens
from lmforge.tokens.loader import Loader, whole_tokens
from lmforge.tokens.shards import Shards
from lmforge.train.finetune import example_rows
from tests.tokens.conftest import recipe, write_documents

CONTEXT, EXAMPLES = 128, 560


def example(number: int, genre: str) -> dict[str, Any]:
    rng = random.Random(number)
    words = rng.choices(["forge", "anvil", "hammer", "iron"], k=rng.randrange(1, 12))
    messages = [
        {"role": "user", "content": f"{number} {' '.join(words)}"},
        {"role": "assistant", "content": str(number % 7)},
    ]
    return {"id": f"e{number}", "text": "x", "source": "s", "genre": genre, "meta": {"messages": messages}}


@pytest.fixture(scope="module", params=[1, 2], ids=["one group", "two groups"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    genres = ["chat", "books"][: request.param]
    train = [example(number, genres[number % len(genres)]) for number in range(EXAMPLES)]
    held_out = [example(number, "chat") for number in range(2000, 2060)]
    corpus = write_documents(folder / "corpus", {"train": train, "valid": held_out, "test": held_out})
    build_tokens(recipe(vocab_size=261, context=CONTEXT), corpus, folder / "tokens")
    return folder / "tokens"


def runs(row: np.ndarray) -> list[tuple[int, int]]:
    """Where equal numbers begin and end."""
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return list(itertools.pairwise(edges))


def test_each_example_stands_whole_in_one_row_an_epoch(shards: Path) -> None:
    opened = Shards.open(shards, "train")
    loader = Loader(opened, CONTEXT, 1, 3, "whole")
    epoch = sum(order.rows for order in loader.orders)
    assert epoch * CONTEXT == whole_tokens(opened, CONTEXT)
    examples = {
        tuple(opened.read(int(first), int(size)).tolist()): int(size) for first, size, _ in opened.documents.tolist()
    }
    assert len(examples) == EXAMPLES
    for turn in (0, 2):
        seen: list[tuple[int, ...]] = []
        for step in range(turn * epoch, (turn + 1) * epoch):
            batch = loader.batch(step)
            assert batch.documents is not None
            held = batch.inputs[0] != opened.pad
            for first, last in runs(batch.documents[0]):
                tokens = tuple(batch.inputs[0, first:last].tolist())
                if tokens in examples:
                    seen.append(tokens)
                    following = batch.targets[0, first:last]
                    expected = np.array([*tokens[1:], opened.end])
                    assert (following[following >= 0] == expected[following >= 0]).all()
                    assert (following >= 0).sum() >= 2  # the answer and its end
                else:  # padding
                    assert not held[first:last].any()
                    assert (batch.targets[0, first:last] == -1).all()
        assert sorted(seen) == sorted(examples)
    assert set(loader.documents(0, 0).tolist()) <= set(range(EXAMPLES))


def test_slices_and_batches_of_any_size_are_the_same_rows(shards: Path) -> None:
    opened = Shards.open(shards, "train")
    many, one = Loader(opened, CONTEXT, 6, 3, "whole"), Loader(opened, CONTEXT, 1, 3, "whole")
    whole = many.batch(4)
    parts = [one.batch(24 + row) for row in range(6)]
    for kind in range(3):
        assert np.array_equal(np.concatenate([part[kind] for part in parts]), whole[kind])
        assert np.array_equal(many.batch(4, 2, 3)[kind], whole[kind][2:5])


def test_validation_rows_hold_whole_examples(shards: Path) -> None:
    opened = Shards.open(shards, "valid")
    inputs, targets, documents, _ = example_rows(opened, CONTEXT, 1 << 20, 1)
    examples = {tuple(opened.read(first, size).tolist()) for first, size, _ in opened.documents.tolist()}
    whole = 0
    for row, numbers in zip(inputs.numpy(), documents.numpy(), strict=True):
        whole += sum(tuple(row[first:last].tolist()) in examples for first, last in runs(numbers))
    assert whole == len(opened.documents)
    ends = torch.zeros_like(documents, dtype=torch.bool)
    ends[:, :-1], ends[:, -1] = documents[:, 1:] != documents[:, :-1], True
    assert not (targets[~ends] == opened.end).any()  # an end is predicted after an example's last token alone
    assert len(example_rows(opened, CONTEXT, 2 * CONTEXT, 1)[0]) == 2


def test_padding_changes_nothing(shards: Path) -> None:
    opened = Shards.open(shards, "train")
    batch = Loader(opened, CONTEXT, 60, 3, "whole").batch(0)
    model = GPT(GPTConfig(vocab_size=261, context=CONTEXT, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32))
    model.initialise(1)
    inputs, targets, documents = (torch.from_numpy(each) for each in batch[:3])
    other = inputs.clone()
    pads = documents == documents.max(1, keepdim=True).values
    pads &= targets == -1
    held = torch.zeros_like(pads)
    for row in range(60):  # the last run, if nothing in it counts
        first, last = runs(documents[row].numpy())[-1]
        held[row, first:last] = bool(pads[row, first:last].all())
    assert held.any()
    other[held] = 42
    losses = [model.loss(each, targets, documents=documents) for each in (inputs, other)]
    assert torch.equal(*losses)


def test_what_does_not_fit_is_named_and_left_out(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Shards.open(shards, "train")
    context = int(np.sort(opened.documents[:, 1])[-3]) - 1
    long = np.flatnonzero(opened.documents[:, 1] > context)
    loader = Loader(opened, context, 1, 3, "whole")
    told = capsys.readouterr().err
    assert f"{len(long)} of {EXAMPLES} examples of the train split are longer than a row of {context} tokens" in told
    assert str(long[0]) in told
    assert sum(len(order.lengths) for order in loader.orders) == EXAMPLES - len(long)
    with pytest.raises(InputError, match=rf"{EXAMPLES} of {EXAMPLES} examples .*; raise tokens\.context"):
        Loader(opened, 4, 1, 3, "whole")
