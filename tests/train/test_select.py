"""What becomes the model is what was scored best."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lmforge.formats.native import load_model
from lmforge.generate.score import token_nats
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import Shards
from lmforge.train.loop import train
from lmforge.train.select import hash_weights
from lmforge.train.validate import validation_rows
from tests.train.runs import recipe_of


def test_without_ensembles_the_best_checkpoint_is_the_model(tiny_run: Path, tmp_path: Path) -> None:
    figures = train(recipe_of(tiny_run, ensemble=0), tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    assert [row["name"] for row in figures["candidates"]] == [f"step {figures['best_step']}"] == [figures["chosen"]]
    assert not (tmp_path / "train" / "snapshots").exists()


def test_the_chosen_model_is_what_was_scored(tiny_run: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_run, steps=20)
    figures = train(recipe, tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    inputs, targets = validation_rows(Shards.open(tiny_run / "tokens", "valid"), 32, recipe.train.validate_tokens)
    nats = token_nats(load_model(tmp_path / "model"), inputs, targets)
    tokenizer = Tokenizer.load(tiny_run / "tokens" / "tokenizer.json")
    text = sum(len(tokenizer.token_bytes(token)) for token in targets[targets >= 0].tolist())
    assert float(nats.double().sum()) / math.log(2) / text == pytest.approx(figures["valid_bits_per_byte"], rel=1e-6)


def test_weights_hash_sees_every_change() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    first = hash_weights(tensors)
    assert first == hash_weights(dict(reversed(tensors.items())))
    assert first != hash_weights({**tensors, "a": torch.tensor([0.0, 0.0, 1e-45])})
    assert first != hash_weights({"a": tensors["a"], "c": tensors["b"]})
