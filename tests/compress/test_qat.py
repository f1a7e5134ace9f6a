"""Training with rounding: what it learns loses less when it is rounded, and it is a plain network again afterwards."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from lmforge.compress.importance import divergence
from lmforge.compress.prune import Prune, PruneStep
from lmforge.compress.qat import Qat, QatStep, Rounding, with_rounding, without_rounding
from lmforge.compress.quantize import Quantize
from lmforge.errors import InputError
from lmforge.recipe import QuantizeStep
from tests.compress.conftest import context_of, relative, rows, saved_and_loaded, small_model, tokens


@pytest.mark.parametrize(("kind", "bits"), [("w8a8", 4), ("weights", 3), ("weights", 4)])
def test_training_rounds_as_quantize_does(tmp_path: Path, kind: str, bits: int) -> None:
    model = small_model(tied=True)
    step = QatStep.model_validate({"method": "qat", "kind": kind, "bits": bits, "steps": 1})
    rounding = with_rounding(copy.deepcopy(model), Rounding(step))
    assert rounding.embed.weight is rounding.head.weight  # type: ignore[union-attr]
    keys = {"bits": bits, "rounding": "nearest", "unpack": "load"} if kind == "weights" else {}
    settings = QuantizeStep.model_validate({"method": "quantize", "kind": kind, **keys})
    rounded = Quantize().apply(model, settings, context_of(model, tmp_path)).model
    limit = 1e-5 if kind == "weights" else 0.06  # quantize learns the range of activations from calibration
    assert relative(rounding(tokens()), rounded(tokens())) < limit
    assert torch.equal(without_rounding(rounding, {})(tokens()), model(tokens()))


def test_what_it_learned_loses_less(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    settings = QuantizeStep.model_validate({"method": "quantize", "kind": "weights", "bits": 3, "rounding": "nearest"})
    step = QatStep(kind="weights", bits=3, steps=60, rows=4, peak_lr=3e-4)
    learned = Qat().apply(model, step, context)
    batch = [rows(8, 24, 77)]
    before = divergence(model, Quantize().apply(model, settings, context).model, batch)
    after = divergence(model, Quantize().apply(learned.model, settings, context).model, batch)
    assert after < 0.9 * before
    again = saved_and_loaded(learned.model, tmp_path, learned.entry)
    assert torch.equal(again(tokens()), learned.model(tokens()))


def test_zeros_stay_and_integers_are_refused(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    pruned = Prune().apply(model, PruneStep(kind="unstructured", share=0.5), context).model
    result = Qat().apply(pruned, QatStep(kind="weights", steps=3, rows=2), context)
    old, new = (each.get_parameter("blocks.0.ff.up.weight") for each in (pruned, result.model))
    assert bool((new[old == 0] == 0).all())
    assert not torch.equal(old, new)
    frozen = Quantize().apply(model, QuantizeStep(), context).model
    with pytest.raises(InputError, match="put qat before quantize"):
        Qat().apply(frozen, QatStep(steps=1), context)
