"""Whole parts go, the least important first, and their multiplications with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lmforge.compress.measure import macs_per_token, module_macs
from lmforge.compress.prune import Prune, PruneStep
from tests.compress.conftest import context_of, rows, saved_and_loaded, small_model, tokens

STRUCTURED = [
    ({}, {"units": 0.5}),
    ({}, {"heads": 0.5, "units": 0.25, "scope": "global"}),
    ({"activation": "swiglu", "biases": True, "norm": "layernorm"}, {"heads": 0.5, "units": 0.5}),
    ({"layers": 4}, {"layers": 0.5, "units": 0.5}),
    ({"experts": 4}, {"experts": 0.5, "units": 0.5}),
    ({"experts": 4}, {"experts": 0.25, "scope": "global", "units": 0.5}),
]


@pytest.mark.parametrize(("changes", "shares"), STRUCTURED, ids=str)
def test_whole_parts_are_gone_and_so_are_their_multiplications(
    tmp_path: Path, changes: dict[str, object], shares: dict[str, object]
) -> None:
    model = small_model(**changes)
    step = PruneStep(kind="structured", rounds=2, **shares)  # type: ignore[arg-type]
    result = Prune().apply(model, step, context_of(model, tmp_path))
    config = result.model.config
    shapes = [config.shape_of(layer) for layer in range(config.layers)]
    old = model.config
    if "layers" in shares:
        assert config.layers == 2
    if "experts" in shares:
        assert sum(shape.experts for shape in shapes) == (4 if shares["experts"] == 0.5 else 6)
    elif "scope" not in shares:
        assert all(shape.d_ff == old.d_ff * (1 - step.units) for shape in shapes)
        assert all(shape.kv_heads == old.kv_heads * (1 - step.heads) for shape in shapes)
        one = module_macs(model.blocks[0].ff) / old.d_ff  # type: ignore[arg-type]
        assert module_macs(result.model.blocks[0].ff) == one * shapes[0].d_ff  # type: ignore[arg-type]
    else:
        assert sum(shape.d_ff for shape in shapes) == 2 * old.d_ff * (1 - step.units)
        assert sum(shape.kv_heads for shape in shapes) == 2
    assert macs_per_token(result.model) < macs_per_token(model)
    assert result.fresh
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert again.config == config
    assert torch.equal(again(tokens()), result.model(tokens()))


def test_the_layer_that_does_nothing_goes_first_and_units_that_do_nothing(tmp_path: Path) -> None:
    model = small_model(layers=4)
    with torch.no_grad():
        model.blocks[2].attention.out.weight.zero_()  # type: ignore[union-attr]
        model.blocks[2].ff.down.weight.zero_()  # type: ignore[union-attr]
    with torch.no_grad():  # rows whose targets the network gives, so that to lose a layer costs
        own = dataclasses.replace(rows(), targets=model(rows().inputs).argmax(-1))
    context = dataclasses.replace(context_of(model, tmp_path), calibration=[own])
    result = Prune().apply(model, PruneStep(kind="structured", layers=0.25), context)
    assert torch.allclose(result.model(tokens()), model(tokens()), atol=1e-5)
    assert min(result.details["rounds"][0]["nats_without_layer"]) == pytest.approx(0, abs=1e-5)
    quiet = small_model()
    with torch.no_grad():
        for block in quiet.blocks:
            block.ff.down.weight[:, ::2] = 0  # type: ignore[union-attr]
    halved = Prune().apply(quiet, PruneStep(kind="structured", units=0.5), context_of(quiet, tmp_path)).model
    assert torch.allclose(halved(tokens()), quiet(tokens()), atol=1e-4)
