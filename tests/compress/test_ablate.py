"""Chains that were stopped, chains with a step left out, sizes that have to be reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lmforge.compress import chain, measure
from lmforge.compress.ablate import ablate
from lmforge.compress.prune import Prune
from lmforge.compress.quantize import Quantize
from lmforge.errors import InputError
from lmforge.formats.load import load_any
from lmforge.formats.native import TENSORS
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe, load_recipe, parse_recipe, to_toml
from lmforge.tokens.loader import Batch
from tests.serve.conftest import save_tiny

STEPS = [
    {"method": "prune", "kind": "structured", "units": 0.25, "heal": {"steps": 2, "rows": 2}},
    {"method": "distil", "steps": 2, "rows": 2, "teacher": "sampled"},
    {"method": "factorize", "ratio": 1.5},
    {"method": "sparsify", "share": 0.7},
    {"method": "quantize", "kind": "weights", "bits": 4},
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.measure
    monkeypatch.setattr(chain, "measure", lambda models: whole(models, seconds=0.1))
    monkeypatch.setattr(chain, "peak_memory", lambda directory: None)


def drawn(config: GPTConfig) -> Callable[[int], Batch]:
    def draw(number: int) -> Batch:
        inputs = np.random.default_rng(number).integers(0, config.vocab_size, (8, config.context), dtype=np.int64)
        targets = np.concatenate((inputs[:, 1:], np.full((8, 1), -1)), 1)
        return Batch(inputs, targets, None)

    return draw


def evaluate(model: GPT) -> dict[str, float]:
    with torch.inference_mode():
        return {"bits_per_byte": 1 + float(model(torch.arange(20)[None]).square().mean())}


def recipe_of(*steps: dict[str, object], **compress: object) -> Recipe:
    return parse_recipe({"compress": {"steps": list(steps), **compress}})


def test_every_method_in_one_chain_loads_anywhere(tmp_path: Path) -> None:
    model_dir = save_tiny(tmp_path / "tiny")
    recipe = recipe_of(*STEPS)
    (tmp_path / "again.toml").write_text(to_toml(recipe))
    assert load_recipe(tmp_path / "again.toml") == recipe
    report = chain.compress(recipe, model_dir, tmp_path / "out", drawn(load_any(model_dir).config), evaluate)
    loaded = load_any(tmp_path / "out")
    assert loaded.methods == ("prune", "distil", "factorize", "sparsify", "quantize")
    assert evaluate(loaded.model)["bits_per_byte"] == report["steps"][-1]["bits_per_byte"]
    assert report["steps"][-1]["file_bytes"] == (tmp_path / "out" / TENSORS).stat().st_size
    assert report["steps"][-1]["bit_operations_per_token"] < report["steps"][0]["bit_operations_per_token"]
    assert "64" in report["steps"][-1]["decode_tokens_per_second"]
    compressed_twice = recipe_of({"method": "prune", "share": 0.2})
    with pytest.raises(InputError, match="before it is quantised"):
        chain.compress(compressed_twice, tmp_path / "out", tmp_path / "twice", drawn(loaded.config), evaluate)


def test_a_chain_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = save_tiny(tmp_path / "tiny")
    draw, recipe = drawn(load_any(model_dir).config), recipe_of(*STEPS[:2], STEPS[4])
    chain.compress(recipe, model_dir, tmp_path / "whole", draw, evaluate)
    apply, pruned = Quantize.apply, Prune.apply

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Quantize, "apply", killed)
    with pytest.raises(KeyboardInterrupt):
        chain.compress(recipe, model_dir, tmp_path / "out", draw, evaluate)
    assert (tmp_path / ".out.work").is_dir()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Quantize, "apply", apply)
    monkeypatch.setattr(Prune, "apply", killed)  # what is finished is not done again
    chain.compress(recipe, model_dir, tmp_path / "out", draw, evaluate)
    assert (tmp_path / "out" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    assert not (tmp_path / ".out.work").exists()
    monkeypatch.setattr(Prune, "apply", pruned)


def test_each_step_left_out_in_turn(tmp_path: Path) -> None:
    model_dir = save_tiny(tmp_path / "tiny")
    draw, recipe = drawn(load_any(model_dir).config), recipe_of(STEPS[0], STEPS[4])
    with pytest.raises(InputError, match="run the compress stage first"):
        ablate(recipe, model_dir, tmp_path / "out", tmp_path / "ablation", draw, evaluate)
    chain.compress(recipe, model_dir, tmp_path / "out", draw, evaluate)
    table = ablate(recipe, model_dir, tmp_path / "out", tmp_path / "ablation", draw, evaluate)
    assert [row["name"] for row in table["rows"]] == [
        "original",
        "whole chain",
        "without-1-prune",
        "without-2-quantize",
    ]
    assert table == json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert load_any(tmp_path / "ablation" / "without-1-prune").methods == ("quantize",)
    assert table["rows"][1]["file_bytes"] < min(row["file_bytes"] for row in table["rows"][2:])
    with pytest.raises(InputError, match="nothing to leave out"):
        ablate(recipe_of(STEPS[0]), model_dir, tmp_path / "out", tmp_path / "ablation", draw, evaluate)
