"""What the tests of training share: recipes of the tiny run, batches, and ways to look at or spoil a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmforge.model.gpt import FeedForward
from lmforge.parallel.data_parallel import DataParallel
from lmforge.parallel.mesh import Mesh
from lmforge.recipe import Recipe, load_recipe
from lmforge.tokens.loader import Batch
from lmforge.train.journal import read_lines
from lmforge.train.loop import Trainer
from lmforge.train.step import TrainStep


def recipe_of(tiny_run: Path, **train_keys: object) -> Recipe:
    return load_recipe(
        tiny_run / "recipe.toml", [f"train.{key}={json.dumps(value)}" for key, value in train_keys.items()]
    )


def losses(out: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_lines(out / "metrics.jsonl") if "loss" in line]


def ragged(rows: int = 16, context: int = 32, vocabulary: int = 300) -> Batch:
    """Rows of different lengths, of which every fourth token or so does not count either; one does not count at all."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, vocabulary, (rows, context + 1))
    targets = text[:, 1:].copy()
    for row, length in enumerate(rng.integers(1, context + 1, rows)):
        targets[row, length:] = -1
    targets[rng.random(targets.shape) < 0.25] = -1
    targets[5] = -1
    return Batch(text[:, :-1].copy(), targets, None)


def gradients(
    recipe: Recipe, tokens: Path, out: Path, micro: int, batch: Batch | None = None, threads: int = 1
) -> list[torch.Tensor]:
    """Of a batch, or of the first."""
    keys: dict[str, int] = {"micro_batch_tokens": micro, "threads": threads} | (
        {"batch_tokens": batch.inputs.size} if batch else {}
    )
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=keys)})
    with one_rank(recipe, tokens, out) as run:
        run.step.gradient(0, batch or run.loader.batch(0))
        return [parameter.grad for parameter in run.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all((x - y).norm() <= 1e-5 * x.norm() for x, y in zip(a, b, strict=True))


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: set[int], spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What block 1's feed-forward part gives is spoilt in some steps (from 0)."""
    real, step_now = TrainStep.run, [-1]

    def step(self: TrainStep, number: int, batch: Batch) -> dict[str, Any]:
        step_now[0] = number
        result = real(self, number, batch)
        step_now[0] = -1  # validation is not spoilt
        return result

    forward = FeedForward.forward

    def spoilt(self: FeedForward, x: torch.Tensor) -> torch.Tensor:
        value = forward(self, x)
        return spoil(value) if step_now[0] in steps and getattr(self, "poisoned", False) else value

    monkeypatch.setattr(TrainStep, "run", step)
    monkeypatch.setattr(FeedForward, "forward", spoilt)
    init = Trainer.__init__

    def started(self: Trainer, *arguments: Any) -> None:
        init(self, *arguments)
        self.model.blocks[1].ff.poisoned = True

    monkeypatch.setattr(Trainer, "__init__", started)


def skipped(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(out / "metrics.jsonl") if "skipped" in line]


@contextlib.contextmanager
def one_rank(recipe: Recipe, tokens: Path, out: Path) -> Iterator[Trainer]:
    """A run before its first step, in one process."""
    layout = DataParallel(Mesh(0, 1, torch.device("cpu")))
    with contextlib.closing(layout), contextlib.closing(Trainer(recipe, tokens, out, layout)) as trainer:
        yield trainer
