"""Small networks in which every layer matters, and rows of tokens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmforge.compress.method import CalibrationBatch, Context
from lmforge.formats.native import load_network, model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.record import atomic_directory

SMALL = GPTConfig(
    vocab_size=300, context=32, layers=2, d_model=64, heads=4, kv_heads=2, d_ff=128, qk_norm=True, ngram_rows=64
)


def plain_model(seed: int = 0, **changes: object) -> GPT:
    model = GPT(dataclasses.replace(SMALL, **changes))  # type: ignore[arg-type]
    model.initialise(seed)
    return model.eval()


def small_model(seed: int = 0, **changes: object) -> GPT:
    """A harder one: gains and biases away from their trivial values, weights so large that every layer matters."""
    model = plain_model(seed, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.rand(parameter.shape, generator=generator) + (0.5 if "norm" in name else -0.5)
            parameter.copy_(parameter * 3 if parameter.ndim == 2 else drawn)
    return model


def tokens(rows: int = 4, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(300, (rows, length), generator=torch.Generator().manual_seed(seed))


def relative(reached: Tensor, true: Tensor) -> float:
    return float((reached - true).detach().norm() / true.detach().norm())


def rows(count: int = 4, length: int = 24, seed: int = 0) -> CalibrationBatch:
    """`tokens` as a batch of calibration."""
    return CalibrationBatch.of_tokens(tokens(count, length, seed))


def context_of(teacher: GPT, folder: Path, **changes: object) -> Context:
    """Rows that differ from batch to batch."""

    def draw(number: int) -> CalibrationBatch:
        return rows(4, 24, number)

    return Context(draw(0).split(2), draw, lambda model: {"bits_per_byte": 1.0}, 1, folder / "step", teacher, **changes)  # type: ignore[arg-type]


def saved_and_loaded(model: GPT, folder: Path, *entries: Mapping[str, Any]) -> GPT:
    """What a model that compression made is when it comes back from disk."""
    (folder / "tokenizer.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text("{}")
    with atomic_directory(folder / "saved") as directory:
        tensors = model_tensors(model)
        write_model(
            directory, model.config, tensors, folder / "tokenizer.json", compression=json.loads(json.dumps(entries))
        )
    return load_network(folder / "saved")
