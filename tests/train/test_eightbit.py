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
    codes, largest = pack(values)
    assert codes.dtype == torch.int8
    assert codes.shape == values.shape
    back = unpack(codes, largest)
    per_value = largest.repeat_interleave(256)[:count]
    assert ((back - values).abs() <= 0.0081 * (values.abs() * per_value).sqrt() + 2e-5 * per_value).all()  # half a code of a square
    squares = values.square()
    codes, largest = pack_squares(squares)
    back = unpack_squares(codes, largest)
    assert ((back >= squares * (1 - 1e-5)) | (squares == 0)).all()  # never rounded down
    assert (back.sqrt().sqrt() - squares.sqrt().sqrt() <= 1.01 / 255 * largest.repeat_interleave(256)[:count].sqrt().sqrt()).all()


def test_zeros_stay_zeros() -> None:
    assert not unpack(*pack(torch.zeros(3, 5))).any()
    assert not unpack_squares(*pack_squares(torch.zeros(300))).any()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_trains_as_well_and_resumes_exactly(optimizer: str) -> None:
    x = torch.arange(8).repeat(4, 1)
    ends = {}

    def start(kind: str) -> tuple[GPT, dict[str, torch.optim.Optimizer]]:
        model = GPT(CONFIG)
        model.initialise(0)
        return model, build_optimizers(model, Train(optimizer=optimizer, optimizer_state=kind, peak_lr=3e-3, weight_decay=0.0))

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
    tensors = optimizer_tensors(optimizers)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    assert size < 1.2 * sum(t.numel() for name, t in tensors.items() if not name.endswith(("largest", "step")))
    again, fresh = start("8bit")
    again.load_state_dict(model.state_dict())
    restore_optimizers(fresh, tensors)
    go(model, optimizers, 3)
    go(again, fresh, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
