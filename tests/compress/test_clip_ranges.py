"""Ranges of a layer's inputs: by the largest, by a percentile, by the least error; columns left out do not count."""

from __future__ import annotations

import pytest
import torch

from lmforge.compress import clip_ranges
from lmforge.compress.clip_ranges import find_clip_ranges
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.smooth import largest_inputs, watch_inputs
from tests.compress.conftest import rows, small_model, tokens


@torch.inference_mode()
def test_packed_documents_are_read_apart() -> None:
    """What one document's tokens do to a layer's inputs does not depend on the document beside it in the row."""
    model, text = small_model(), tokens(2, 24)
    documents = torch.zeros(2, 24, dtype=torch.int32)
    documents[:, 12:] = 1
    packed = CalibrationBatch(text, text, documents)
    apart = CalibrationBatch(text.view(4, 12), text.view(4, 12))
    ours = find_clip_ranges(model, [packed])
    assert ours == pytest.approx(find_clip_ranges(model, [apart]), rel=1e-5)
    assert ours != find_clip_ranges(model, [CalibrationBatch(text, text)])


@torch.inference_mode()
def test_what_the_loss_leaves_out_is_read_all_the_same() -> None:
    """Questions are cut and rounded too, and answers are computed from them."""
    model, batch = small_model(), rows()
    masked = CalibrationBatch(batch.inputs, torch.full_like(batch.targets, -1))
    assert find_clip_ranges(model, [masked]) == find_clip_ranges(model, [batch])


@torch.inference_mode()
def test_a_percentile_has_that_share_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_ranges, "COARSE", 10.0)  # no layer falls back to each token's own range
    model, batch = small_model(), rows()
    inputs: dict[str, list[torch.Tensor]] = {}
    watch_inputs(model, [batch], lambda name, x: inputs.setdefault(name, []).append(x.abs().flatten().clone()))
    for name, reach in find_clip_ranges(model, [batch], kind="percentile", percentile=90).items():
        sizes = torch.cat(inputs[name])
        assert float((sizes <= reach).double().mean()) == pytest.approx(0.9, abs=0.02)


@torch.inference_mode()
def test_the_least_error_is_no_more_than_that_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_ranges, "COARSE", 10.0)
    model, batch = small_model(), rows()
    ranges = {kind: find_clip_ranges(model, [batch], kind=kind) for kind in ("max", "mse")}
    error = dict.fromkeys(ranges, 0.0)

    def see(name: str, x: torch.Tensor) -> None:
        for kind in ranges:
            reach = ranges[kind][name]
            step = reach / 63
            error[kind] += float(((x / step).round() * step).clamp(-reach, reach).sub(x).square().sum())

    watch_inputs(model, [batch], see)
    assert error["mse"] <= error["max"]
    assert any(ranges["mse"][name] < ranges["max"][name] for name in ranges["max"])


@torch.inference_mode()
def test_each_tokens_own_range_and_columns_that_are_left_out() -> None:
    model, batch = small_model(), rows()
    assert set(find_clip_ranges(model, [batch], kind="token").values()) == {0.0}
    largest = largest_inputs(model, [batch])
    name = "blocks.0.ff.up"
    column = largest[name].argmax()[None]
    left = find_clip_ranges(model, [batch], without={name: column})
    assert left[name] in (0.0, pytest.approx(float(largest[name].index_fill(0, column, 0.0).amax())))
