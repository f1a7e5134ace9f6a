"""Sizes that have to be reached, losses that must not be exceeded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmforge.compress import budget, chain, int8, measure, quantize
from lmforge.compress.method import CalibrationBatch, Context
from lmforge.errors import InputError, LmforgeError
from lmforge.formats.load import load_any
from lmforge.formats.native import load_network
from lmforge.recipe import QuantizeStep
from tests.compress.test_ablate import STEPS, drawn, evaluate, recipe_of
from tests.compress.test_chain import TINY, batch, bits, saved, text
from tests.serve.conftest import save_tiny


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.measure
    monkeypatch.setattr(chain, "measure", lambda models: whole(models, seconds=0.1))
    monkeypatch.setattr(chain, "peak_memory", lambda directory: None)


def test_a_size_that_is_not_reached_fails_and_names_what_is_large(tmp_path: Path) -> None:
    model_dir = save_tiny(tmp_path / "tiny")
    draw = drawn(load_any(model_dir).config)
    for allowed, words in (
        ({"bytes": "10kB"}, r"budget: bytes: [\d,]+ where 10,000"),
        ({"macs": 5000}, r"budget: macs: [\d,]+"),
    ):
        with pytest.raises(LmforgeError, match=words + r".*what takes most: .*; compress further"):
            chain.compress(recipe_of(STEPS[4], budget=allowed), model_dir, tmp_path / "out", draw, evaluate)
        assert not (tmp_path / "out").exists()
    chain.compress(
        recipe_of(STEPS[4], budget={"bytes": "1MB", "macs": "1M"}), model_dir, tmp_path / "out", draw, evaluate
    )


def test_a_number_alone_is_the_budget_of_loss(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(STEPS[4], budget=0.01)
    assert recipe.compress.budget is not None
    assert recipe.compress.budget.loss == 0.01
    assert "taken as {loss = 0.01}" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"compress\.budget"):
        recipe_of(STEPS[4], budget={"nats": 0.1})


def test_sensitivity_finds_the_layer_that_rounds_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_network(saved(tmp_path / "model", TINY))
    pack = int8.QuantizedLinear.pack

    def badly(self: int8.QuantizedLinear, weight: Tensor, scale: Tensor) -> None:
        wide = self.in_features == TINY.d_ff and not torch.equal(weight[:1], first)
        pack(self, weight // 32 * 32 if wide else weight, scale)

    first = int8.round_rows(model.get_parameter("blocks.0.ff.down.weight"))[0][:1]
    monkeypatch.setattr(quantize, "smooth", lambda model, batches: None)
    monkeypatch.setattr(int8.QuantizedLinear, "pack", badly)
    rows = CalibrationBatch.of_tokens(text(TINY, 4))
    context = Context([rows], lambda number: rows, bits, 0, tmp_path / "work", model)
    method, step = quantize.Quantize(), QuantizeStep()
    ranking = budget.sensitivity(method, model, method.apply(model, step, context), step, context)
    assert next(iter(ranking)) == "blocks.1.ff.down"
    assert list(ranking.values()) == sorted(ranking.values(), reverse=True)


@torch.inference_mode()
def test_sensitivity_counts_the_predictions_that_the_loss_counts(tmp_path: Path) -> None:
    model, method, step = load_network(saved(tmp_path / "model", TINY)), quantize.Quantize(), QuantizeStep()
    masked = CalibrationBatch.of_rows(batch(TINY, 4, counting=slice(20, 27)))
    context = Context([masked], lambda number: masked, bits, 0, tmp_path / "work", model)
    ranking = budget.sensitivity(method, model, method.apply(model, step, context), step, context)
    name, nats = next(iter(ranking.items()))
    alone, _ = quantize.quantize(model, [masked], [other for other in ranking if other != name])
    true, smaller = (each(masked.inputs).log_softmax(-1)[:, 20:27] for each in (model, alone))
    assert nats == pytest.approx(float((true.exp() * (true - smaller)).sum(-1).mean()), rel=1e-4)
    everywhere = dataclasses.replace(context, calibration=[CalibrationBatch.of_rows(batch(TINY, 4))])
    assert budget.sensitivity(method, model, method.apply(model, step, context), step, everywhere)[name] != nats
