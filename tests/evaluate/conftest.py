"""A tiny corpus with its tokens, and untrained models over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.compress.quantize import quantize
from lmforge.corpus.build import build_corpus
from lmforge.evaluate.documents import HeldOut
from lmforge.evaluate.task import TASKS, Context, Score
from lmforge.formats.native import model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import atomic_directory
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from tests.conftest import tiny_recipe, tiny_texts

VOCABULARY, CONTEXT = 320, 32


def tiny_model(seed: int | None = 0) -> GPT:
    """Two layers over the tiny vocabulary; without a seed every weight is 0, so that every token is equally likely."""
    model = GPT(GPTConfig(VOCABULARY, CONTEXT, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64))
    model.initialise(seed or 0)
    if seed is None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    return model.eval()


def score_of(name: str, context: Context, **settings: Any) -> Score:
    """A task's score of the context's model, with settings of its own."""
    task = TASKS[name]
    given = task.settings.model_validate({"name": name, **settings})
    score: Score = task.run(context, task.settled(context.recipe, given))
    return score


def held_out_of(context: Context) -> HeldOut:
    """The documents that bits_per_byte scores."""
    return context.held_out(TASKS["bits_per_byte"].settled(context.recipe))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.toml, corpus, tokens, and two saved models: model, compressed."""
    folder = tmp_path_factory.mktemp("evaluate")
    recipe = load_recipe(tiny_recipe(folder / "recipe.toml", tiny_texts(folder / "texts"), folder))
    build_corpus(recipe, folder / "corpus")
    build_tokens(recipe, folder / "corpus", folder / "tokens")
    save(tiny_model(1), folder / "model", folder)
    small, details = quantize(tiny_model(1))
    with atomic_directory(folder / "compressed") as directory:
        write_model(
            directory,
            small.config,
            model_tensors(small),
            folder / "tokens" / "tokenizer.json",
            compression=[details["entry"]],
        )
    return folder


def save(model: GPT, directory: Path, base: Path) -> None:
    with atomic_directory(directory) as folder:
        write_model(folder, model.config, model_tensors(model), base / "tokens" / "tokenizer.json")


@pytest.fixture
def recipe(base: Path) -> Recipe:
    return load_recipe(base / "recipe.toml")


@pytest.fixture
def context_of(base: Path) -> Callable[..., Context]:
    """A context for a model, the recipe's settings overridden as wished."""

    def make(model: GPT | None, *overrides: str) -> Context:
        recipe = load_recipe(base / "recipe.toml", overrides)
        return Context(
            recipe, base / "corpus", base / "tokens", Tokenizer.load(base / "tokens" / "tokenizer.json"), model
        )

    return make
