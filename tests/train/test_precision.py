"""The loss scale: exact, adaptive, kept; the type is measured, not assumed."""

from __future__ import annotations

import pytest
import torch

from lmforge.errors import LmforgeError
from lmforge.model.gpt import GPTConfig
from lmforge.train.precision import LossScaler, autocast, bfloat16_gain, safest_on_gpu

CPU = torch.device("cpu")


def test_the_scale_halves_on_overflow_and_doubles_after_a_calm_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScaler, "DOUBLE_AFTER", 3)
    scaler = LossScaler()
    scaler.overflowed(0)
    assert scaler.scale == 2.0**15
    scaler.fitted()
    again = LossScaler()
    again.load_state_dict(scaler.state_dict())  # through a checkpoint
    for each in (scaler, again):
        each.fitted()
        each.fitted()
        assert (each.scale, each.calm) == (2.0**16, 0)


def test_at_the_floor_it_stops_with_the_cause() -> None:
    scaler = LossScaler()
    scaler.load_state_dict({"scale": 2.0, "calm": 9})
    scaler.overflowed(6)
    with pytest.raises(
        LmforgeError, match=r"gradients of step 7 overflow even at a loss scale of 1; lower train\.peak_lr"
    ):
        scaler.overflowed(6)


def test_unscaling_is_exact() -> None:
    weight = torch.nn.Parameter(torch.zeros(100))
    gradient = torch.randn(100)
    scaler = LossScaler()
    weight.grad = gradient * scaler.scale
    scaler.unscale([weight, torch.nn.Parameter(torch.zeros(1))])
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_arithmetic_follows_the_precision(precision: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(precision, CPU):
        assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_the_gain_is_measured_here() -> None:
    threads = torch.get_num_threads()
    assert bfloat16_gain(GPTConfig(64, 8, 1, 16, 2, 2, 64), tokens=32) > 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")])
def test_on_a_gpu_bfloat16_where_it_is_multiplied(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    precision, why = safest_on_gpu(torch.device("cuda"))
    assert precision == expected
    assert f"{capability[0]}.{capability[1]}" in why
