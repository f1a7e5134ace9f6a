"""Evening out: the same function with tamer channels; how far inputs reach, per layer or per token."""

from __future__ import annotations

import copy

import pytest
import torch

from lmforge.compress import clip_ranges
from lmforge.compress.quantize import quantize
from lmforge.compress.smooth import smooth
from tests.compress.conftest import plain_model, relative, rows, small_model, tokens


@torch.inference_mode()
def test_a_layer_that_one_reach_would_round_away_keeps_a_reach_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    _, details = quantize(plain_model(), [rows(seed=1)])
    assert details["clip_ranges"]["blocks.0.attention.qkv"] > 0  # normalised inputs are alike
    monkeypatch.setattr(clip_ranges, "COARSE", 0.0)
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
