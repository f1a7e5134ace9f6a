"""Zeros where they cost least; a network's own count; what would be skipped is measured; saved and loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lmforge.compress.distil import Distil, DistilStep
from lmforge.compress.factorize import Factorize, FactorizeStep
from lmforge.compress.healing import Healing
from lmforge.compress.importance import divergence
from lmforge.compress.prune import Prune, PruneStep
from lmforge.compress.quantize import Quantize
from lmforge.compress.sparse_input import skipped, sparse_inputs
from lmforge.compress.sparsify import Sparsify, SparsifyStep
from lmforge.errors import InputError
from lmforge.recipe import QuantizeStep
from tests.compress.conftest import context_of, rows, saved_and_loaded, small_model, tokens

ALL = ("attention.qkv", "attention.out", "ff.up", "ff.down")


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, {"share": 0.8}),
        ({"activation": "relu2"}, {"share": 0.7, "scope": "global", "matrices": ALL}),
        ({"activation": "swiglu", "biases": True, "norm": "layernorm"}, {"share": 0.5, "matrices": ALL}),
        ({"activation": "swiglu"}, {"kind": "top_k", "share": 0.75}),
        ({"experts": 4, "experts_shared": 1}, {"share": 0.6}),
    ],
    ids=str,
)
def test_the_share_is_reached_and_the_model_comes_back(
    tmp_path: Path, changes: dict[str, object], step: dict[str, object]
) -> None:
    model = small_model(**changes)
    context = dataclasses.replace(context_of(model, tmp_path), calibration=rows(16, 24, 5).split(4))
    result = Sparsify().apply(model, SparsifyStep(**step), context)  # type: ignore[arg-type]
    share = result.details["skipped"]
    assert share["of_matrices"] == pytest.approx(step["share"], abs=0.04)
    assert 0 < share["of_matrices_at_batch_8"] < share["of_matrices"] or share["of_matrices_at_batch_8"] == 0
    assert share["of_model"] < share["of_matrices"]
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))
    assert skipped(again, context.calibration) == share
    assert result.model(tokens()).isfinite().all()


def test_zeros_that_relu_makes_cost_nothing(tmp_path: Path) -> None:
    model = small_model()
    result = Sparsify().apply(model, SparsifyStep(share=0.3), context_of(model, tmp_path))
    assert set(result.details["thresholds"].values()) == {0.0}
    assert torch.equal(result.model(tokens()), model(tokens()))
    assert result.details["skipped"]["of_matrices"] > 0.3


def test_sharing_zeros_out_costs_less_than_equal_shares_and_healing_less_still(tmp_path: Path) -> None:
    model = small_model(activation="swiglu")
    with torch.no_grad():  # in one layer nearly everything comes from few units
        model.blocks[0].ff.up.weight[:8].mul_(8)  # type: ignore[union-attr]
    context = dataclasses.replace(context_of(model, tmp_path), calibration=rows(16, 24, 5).split(4))
    fresh = [rows(8, 24, 999)]

    def far(**changes: object) -> float:
        return divergence(model, Sparsify().apply(model, SparsifyStep(share=0.6, **changes), context).model, fresh)  # type: ignore[arg-type]

    same = far(matrices=ALL)
    assert far(matrices=ALL, scope="global") < same
    assert far(matrices=ALL, heal=Healing(steps=20, rows=4, peak_lr=1e-3)) < same


def test_in_a_chain_with_others(tmp_path: Path) -> None:
    """After pruning and factorizing, before distilling and quantising; what changes shapes comes before."""
    model = small_model()
    context = context_of(model, tmp_path)
    pruned = Prune().apply(model, PruneStep(share=0.4), context)
    thin = Factorize().apply(pruned.model, FactorizeStep(matrices=("ff.up",), ratio=1.5), context)
    sparse = Sparsify().apply(thin.model, SparsifyStep(share=0.8, matrices=("ff.up", "ff.down")), context)
    healed = Distil().apply(sparse.model, DistilStep(steps=2, rows=2), context)
    assert not healed.fresh
    entries = [{**pruned.entry, "superseded": True}, thin.entry, sparse.entry, healed.entry]
    assert torch.equal(saved_and_loaded(healed.model, tmp_path, *entries)(tokens()), healed.model(tokens()))
    for step in (QuantizeStep(), QuantizeStep(kind="weights")):
        small = Quantize().apply(healed.model, step, context)
        again = saved_and_loaded(small.model, tmp_path, *entries, small.entry)
        assert torch.equal(again(tokens()), small.model(tokens()))
        assert sparse_inputs(again).keys() == sparse_inputs(sparse.model).keys()
    with pytest.raises(InputError, match="before its activations are sparsified"):
        Prune().apply(sparse.model, PruneStep(kind="structured", units=0.5), context)
    with pytest.raises(InputError, match="before its activations are sparsified"):
        Factorize().apply(sparse.model, FactorizeStep(), context)
    with pytest.raises(InputError, match="has dense inputs"):
        Sparsify().apply(sparse.model, SparsifyStep(matrices=("ff.up", "ff.down")), context)


def test_a_budget_gives_matrices_back(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    step = SparsifyStep(share=0.9)
    result = Sparsify().apply(model, step, context)
    assert Sparsify().units(model, step) == ["blocks.0.ff.down", "blocks.1.ff.down"]
    back = Sparsify().give_back(model, result, ["blocks.0.ff.down"], step, context)
    assert list(back.entry["matrices"]) == ["blocks.1.ff.down"]
    assert torch.equal(saved_and_loaded(back.model, tmp_path, back.entry)(tokens()), back.model(tokens()))
