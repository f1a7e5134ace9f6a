"""Layers of other shapes in a network, and back."""

from __future__ import annotations

from pathlib import Path

import torch

from lmforge.compress.healing import Healing
from lmforge.compress.prune import Prune, PruneStep
from lmforge.model.gpt import LayerShape
from tests.compress.conftest import context_of, saved_and_loaded, small_model, tokens


def test_layers_kept_stay_whole_and_are_given_back_after_healing(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    step = PruneStep(kind="structured", units=0.5, heal=Healing(steps=2, rows=2))
    assert Prune().units(model, step) == ["blocks.0", "blocks.1"]
    kept = Prune().apply(model, step, context, ["blocks.1"]).model.config
    assert [kept.shape_of(layer).d_ff for layer in range(2)] == [64, 128]
    result = Prune().apply(model, step, context)
    back = Prune().give_back(model, result, ["blocks.0"], step, context)
    assert back.model.config.shape_of(0) == LayerShape(4, 2, 128)
    assert torch.equal(back.model.blocks[0].ff.up.weight, model.blocks[0].ff.up.weight)  # type: ignore[union-attr]
    assert torch.equal(saved_and_loaded(back.model, tmp_path, back.entry)(tokens()), back.model(tokens()))
