"""Evening out: the same function with tamer channels; how far inputs reach, per layer or per token."""

from __future__ import annotations

import copy

import pytest
import torch

from lmforge.compress import smooth as smooth_module
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.quantize import quantize
from lmforge.compress.smooth import find_clip_ranges, smooth
from tests.compress.conftest import plain_model, relative, rows, small_model, tokens


@torch.inference_mode()
def test_a_layer_that_one_reach_would_round_away_keeps_a_reach_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    _, details = quantize(plain_model(), [rows(seed=1)])
    assert details["clip_ranges"]["blocks.0.attention.qkv"] > 0  # normalised inputs are alike
    monkeypatch.setattr(smooth_module, "COARSE", 0.0)
    _, careful = quantize(plain_model(), [rows(seed=1)])
    assert set(careful["clip_ranges"].values()) == {0.0}


@pytest.mark.parametrize(
    "changes", [{}, {"activation": "relu2", "biases": True}, {"norm": "layernorm", "biases": True}]
)
@torch.inference_mode()
def test_evening_out_changes_no_logit_and_tames_an_outlier(changes: dict[str, object]) -> None:
    model = small_model(**changes)
    for block in model.blocks:  # the same function, with one channel of each input 300 times the others
        block.attention_norm.weight[3] *= 300  # type: ignore[union-attr, operator, index]
        block.attention.qkv.weight[:, 3] /= 300  # type: ignore[union-attr, operator, index]
        block.ff_norm.weight[5] *= 300  # type: ignore[union-attr, operator, index]
        block.ff.up.weight[:, 5] /= 300  # type: ignore[union-attr, operator, index]
    true = model(tokens())
    evened = copy.deepcopy(model)
    smooth(evened, [rows(seed=1)])
    assert relative(evened(tokens()), true) < 1e-4
    plain, with_calibration = quantize(model)[0], quantize(model, [rows(seed=1)])[0]
    assert relative(with_calibration(tokens()), true) < 0.5 * relative(plain(tokens()), true)


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
