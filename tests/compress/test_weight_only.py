"""Weights in few bits: smaller files, the same answers after loading, within the bytes that were allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from lmforge.compress.grouped import GroupedLinear
from lmforge.compress.importance import divergence
from lmforge.compress.masks import masked
from lmforge.compress.measure import bit_operations, macs_per_token, resident_bytes
from lmforge.compress.prune import Prune, PruneStep
from lmforge.compress.quantize import Quantize
from lmforge.compress.weight_only import channel_scale, plain_layers
from lmforge.errors import InputError, LmforgeError
from lmforge.formats.native import model_tensors
from lmforge.recipe import QuantizeStep, parse_recipe
from tests.compress.conftest import context_of, rows, saved_and_loaded, small_model, tokens


def step_of(**settings: object) -> QuantizeStep:
    return QuantizeStep(kind="weights", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {"bits": 8}),
        ({}, {"bits": 3, "group": 16}),
        ({"tied": False, "biases": True, "norm": "layernorm"}, {"bits": 5, "scaled": True}),
        ({"experts": 4, "experts_shared": 1}, {"bits": 6, "unpack": "fly"}),
        ({"residual": "reversible"}, {"bits": 4, "rounding": "nearest"}),
        ({"activation": "swiglu", "positions": "learned"}, {"bits": 4, "unpack": "fly", "scaled": True, "group": 48}),
    ],
    ids=str,
)
def test_a_model_comes_back_from_disk_bit_by_bit(
    tmp_path: Path, changes: dict[str, object], settings: dict[str, object]
) -> None:
    model = small_model(**changes)
    result = Quantize().apply(model, step_of(**settings), context_of(model, tmp_path))
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))
    assert not plain_layers(result.model)
    assert (
        len(save(model_tensors(result.model)))
        < len(save(model_tensors(model))) * (result.details["mean_bits"] + 4) / 32
    )
    assert macs_per_token(result.model) == macs_per_token(model)
    assert bit_operations(result.model) < bit_operations(model)
    if settings.get("unpack") == "fly":
        assert resident_bytes(result.model) < 0.4 * resident_bytes(model)


def test_more_bits_and_feedback_are_nearer(tmp_path: Path) -> None:
    model = small_model()
    fresh = [rows(6, 24, 999)]
    # many times as many tokens as a matrix has columns: feedback learns the inputs, not the rows
    context = dataclasses.replace(context_of(model, tmp_path), calibration=rows(64, 24, 5).split(16))

    def far(**settings: object) -> float:
        return divergence(model, Quantize().apply(model, step_of(**settings), context).model, fresh)

    by_bits = [far(bits=bits) for bits in (3, 4, 5, 6, 8)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert far(bits=3, rounding="feedback") < far(bits=3, rounding="nearest")


@pytest.mark.parametrize("share", [0.16, 0.2, 0.27])
def test_mixed_bits_fit_and_go_where_they_save_most(tmp_path: Path, share: float) -> None:
    model = small_model(ngram_rows=0)
    context = context_of(model, tmp_path)
    allowed = round(share * len(save(model_tensors(model))))
    result = Quantize().apply(model, step_of(bytes=allowed), context)
    reached = len(save(model_tensors(result.model)))
    assert 0.8 * allowed < reached <= allowed
    assert list(result.details["nats_alone"].values()) == sorted(result.details["nats_alone"].values(), reverse=True)
    assert torch.equal(saved_and_loaded(result.model, tmp_path, result.entry)(tokens()), result.model(tokens()))


def test_too_few_bytes_fail_and_name_what_takes_most(tmp_path: Path) -> None:
    model = small_model()
    with pytest.raises(LmforgeError, match=r"are needed at 3 bits, 10,000 are allowed; what takes most: .*embed"):
        Quantize().apply(model, step_of(bytes=10_000), context_of(model, tmp_path))


def test_kept_layers_stay_and_masked_zeros_do(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    pruned = Prune().apply(model, PruneStep(share=0.6), context)
    kept = ["blocks.0.ff.up"]
    result = Quantize().apply(pruned.model, step_of(bits=4), context, kept)
    assert plain_layers(result.model) == kept
    for name in masked(pruned.model):
        if name not in kept:
            layer = result.model.get_submodule(name)
            assert isinstance(layer, GroupedLinear)
            assert not layer.dense()[~pruned.model.get_submodule(name).mask].any()  # type: ignore[index]
    again = saved_and_loaded(result.model, tmp_path, pruned.entry, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))
    both = Quantize().apply(pruned.model, QuantizeStep(), context)  # 8-bit integers of a pruned model
    assert torch.equal(saved_and_loaded(both.model, tmp_path, pruned.entry, both.entry)(tokens()), both.model(tokens()))


def test_scaling_helps_where_inputs_differ_in_size() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator) * torch.logspace(-1, 1, 64)[torch.randperm(64, generator=generator)]
    weight = torch.randn(32, 64, generator=generator)
    factor = channel_scale(weight, x.t() @ x, 3, 32)
    assert factor is not None
    assert (factor > 0).all()


def test_an_entry_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = small_model()
    result = Quantize().apply(model, step_of(), context_of(model, tmp_path))
    layers = {**result.entry["layers"]}
    layers["embed"] = {**layers["embed"], "bits": 8}
    with pytest.raises(InputError, match=r"embed\.codes: torch\.uint8 .*run the"):
        saved_and_loaded(result.model, tmp_path, {**result.entry, "layers": layers})
    with pytest.raises(InputError, match="not an entry this version reads"):
        saved_and_loaded(result.model, tmp_path, {**result.entry, "layers": {"nowhere": {}}})
    with pytest.raises(InputError, match="every layer is quantised already"):
        Quantize().apply(result.model, step_of(), context_of(model, tmp_path))
    with pytest.raises(InputError, match="group is of kind = 'weights'"):
        parse_recipe({"compress": {"steps": [{"method": "quantize", "group": 16}]}})
