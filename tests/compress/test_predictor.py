"""What a predictor finds, and that a model with one is the same wherever it runs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lmforge.compress.measure import bit_operations, module_macs
from lmforge.compress.predictor import HELD, PredictorSettings, fit, predicted_rows
from lmforge.compress.quantize import Quantize
from lmforge.compress.sparsify import Sparsify, SparsifyStep
from lmforge.generate.continuation import prefill
from lmforge.generate.lean import lean_of
from lmforge.kernels.build import library
from lmforge.recipe import QuantizeStep
from tests.compress.conftest import context_of, rows, saved_and_loaded, small_model, tokens


def test_units_of_a_low_rank_are_foretold_with_the_recall_that_was_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 4, generator=generator) @ torch.randn(4, 32, generator=generator)
    x = torch.randn(1600, 32, generator=generator)
    needed = x @ weight.t() > 2.0
    found = fit(x, needed, weight, PredictorSettings(rank=4, recall=0.98, steps=100), 0)
    held = torch.arange(len(x)) % HELD == HELD - 1
    chosen = found.predictor(x[held]) > 0
    assert float((chosen & needed[held]).sum() / needed[held].sum()) == pytest.approx(found.recall)
    assert 0.98 <= found.recall < 0.99
    assert found.share == pytest.approx(float(chosen.float().mean()))
    assert found.share < 1.2 * float(needed.float().mean())
    # where nothing is known every unit is let through nearly as often
    guessed = fit(torch.zeros_like(x), needed, weight, PredictorSettings(rank=4, recall=0.98, steps=1), 0)
    assert guessed.share > 0.9


def test_a_predictor_needs_sparse_inputs_behind_it() -> None:
    for matrices in (("attention.out",), ("ff.up", "ff.down")):
        with pytest.raises(ValidationError, match="predictor: it foretells"):
            SparsifyStep(matrices=matrices, predictor=PredictorSettings())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"activation": "relu"}, {"activation": "swiglu", "biases": True}, {"activation": "relu2", "experts": 4}],
    ids=str,
)
def test_saved_counted_quantised_and_given_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = small_model(**changes)
    context = dataclasses.replace(context_of(model, tmp_path), calibration=rows(16, 24, 5).split(4))
    step = SparsifyStep(share=0.9, predictor=PredictorSettings(rank=2, recall=0.8, steps=20))
    result = Sparsify().apply(model, step, context)
    found, modules = result.details["predictor"], predicted_rows(result.model)
    assert (found.pop("rank"), found.pop("recall")) == (2, 0.8)
    assert {name for name, each in found.items() if "note" not in each} == modules.keys()
    assert modules
    name, first = next(iter(modules.items()))
    assert found[name]["rows"] < 1
    units = first.predictor.wide.shape[0]
    assert module_macs(first) == module_macs(first.inner) + 2 * (64 + units)
    assert bit_operations(first) == 32 * 32 * module_macs(first)
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))
    share = result.details["skipped"]
    assert {*modules} < share["by_matrix"].keys()
    bare = Sparsify().apply(model, SparsifyStep(share=0.9), context).details["skipped"]
    assert share["of_model"] > bare["of_model"]
    small = Quantize().apply(result.model, QuantizeStep(), context)
    quantised = saved_and_loaded(small.model, tmp_path, result.entry, small.entry)
    assert torch.equal(quantised(tokens()), small.model(tokens()))
    assert predicted_rows(quantised).keys() == modules.keys()
    down = f"{name.removesuffix('up')}down"
    back = Sparsify().give_back(model, result, [down], step, context)
    assert name not in back.entry.get("predictors", {})
    assert torch.equal(saved_and_loaded(back.model, tmp_path, back.entry)(tokens()), back.model(tokens()))


@pytest.mark.skipif(library() is None, reason="no kernels here")
@pytest.mark.parametrize("step", [None, QuantizeStep(), QuantizeStep(kind="weights", group=16)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_decoding_leaves_the_same_rows_out(tmp_path: Path, step: QuantizeStep | None, activation: str) -> None:
    model = small_model(activation=activation)
    context = dataclasses.replace(context_of(model, tmp_path), calibration=rows(16, 24, 5).split(4))
    sparse = (
        Sparsify()
        .apply(model, SparsifyStep(share=0.8, predictor=PredictorSettings(rank=3, steps=20, recall=0.7)), context)
        .model
    )
    model = sparse if step is None else Quantize().apply(sparse, step, context).model
    assert predicted_rows(model)
    lean = lean_of(model)
    assert lean is not None
    with torch.inference_mode():
        (_, cache), (_, other) = (prefill(model, [[5, 6, 7], [8]], 24) for _ in range(2))
        alone = copy.deepcopy(cache)
        alone.select(torch.tensor([0]))
        for token in torch.randint(300, (6, 2), generator=torch.Generator().manual_seed(0)):
            reached, expected = lean.step(token, cache), model(token[:, None], other)[:, -1]
            assert float((reached - expected).norm() / expected.norm()) < (1e-5 if step is None else 0.03)
            assert torch.equal(lean.step(token[:1], alone)[0], reached[0])
