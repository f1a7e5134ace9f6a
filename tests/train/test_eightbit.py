"""State in bytes: close, small, kept exactly through a checkpoint; and it trains as well."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Train
from lmforge.train.checkpoint import optimizer_tensors, restore_optimizers
from lmforge.train.eightbit import pack, pack_squares, unpack, unpack_squares
from lmforge.train.optim import build_optimizers

CONFIG = GPTConfig(vocab_size=16, context=8, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32)


@given(st.integers(1, 700), st.integers(-12, 12), st.integers(0, 99))
def test_values_come_back_nearly(count: int, power: int, seed: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    codes, largest = pack(values, seed)
    assert codes.dtype == torch.int8
    assert codes.shape == values.shape
    back = unpack(codes, largest)
    per_value = largest.repeat_interleave(256)[:count]
    assert ((back.abs().sqrt() - values.abs().sqrt()).abs() <= 1.01 / 127 * per_value.sqrt()).all()  # one code
    assert (back * values >= 0).all()
    squares = values.square()
    codes, largest = pack_squares(squares, seed)
    back = unpack_squares(codes, largest)
    assert ((back > 0) | (squares == 0)).all()
    assert (
        (back.sqrt().sqrt() - squares.sqrt().sqrt()).abs()
        <= 1.01 / 255 * largest.repeat_interleave(256)[:count].sqrt().sqrt()
    ).all()


def test_a_slowly_falling_average_falls() -> None:
    """By 5% a turn, less than the distance of small codes; rounding to the nearest would hold it."""
    value = torch.full((256,), 1e-4)
    value[0] = 1.0
    for turn in range(60):
        value = unpack_squares(*pack_squares(value, turn)) * 0.95
        value[0] = 1.0
    assert 0.5 < float(value[1:].mean()) / (1e-4 * 0.95**60) < 2


def test_zeros_stay_zeros() -> None:
    assert not unpack(*pack(torch.zeros(3, 5), 1)).any()
    assert not unpack_squares(*pack_squares(torch.zeros(300), 1)).any()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_trains_as_well_and_resumes_exactly(optimizer: str) -> None:
    x = torch.arange(8).repeat(4, 1)
    ends = {}

    def start(kind: str) -> tuple[GPT, dict[str, torch.optim.Optimizer]]:
        model = GPT(CONFIG)
        model.initialise(0)
        return model, build_optimizers(
            model, Train(optimizer=optimizer, optimizer_state=kind, peak_lr=3e-3, weight_decay=0.0)
        )

    def go(model: GPT, optimizers: dict[str, torch.optim.Optimizer], steps: int) -> float:
        for _ in range(steps):
            loss = model.loss(x, x + 1) / x.numel()
            loss.backward()
            for each in optimizers.values():
                each.step()
            model.zero_grad()
        return float(loss.detach())

    for kind in ("fp32", "8bit"):
        model, optimizers = start(kind)
        ends[kind] = go(model, optimizers, 60)
    assert ends["8bit"] < 1.1 * ends["fp32"] + 0.02
    tensors = optimizer_tensors(model, optimizers)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    assert size < 1.3 * sum(t.numel() for name, t in tensors.items() if not name.endswith(("largest", "step", "turn")))
    again, fresh = start("8bit")
    again.load_state_dict(model.state_dict())
    restore_optimizers(again, fresh, tensors)
    go(model, optimizers, 3)
    go(again, fresh, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
