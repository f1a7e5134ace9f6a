"""Masks are exact: in the file, in the products, and against gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmforge.compress.masks import (
    MaskedLinear,
    magnitude_mask,
    mask_linear,
    pack_bits,
    two_of_four_mask,
    unpack_bits,
)
from tests.compress.conftest import small_model, tokens


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_come_back(bits: list[bool]) -> None:
    packed = pack_bits(torch.tensor(bits))
    assert len(packed) == -(-len(bits) // 8)
    assert unpack_bits(packed, len(bits)).tolist() == bits


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.booleans(), st.integers(0, 99))
def test_a_masked_matrix_is_restored_exactly(rows: int, columns: int, share: float, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = MaskedLinear(columns, rows, bias).eval()
    layer.set_mask(torch.rand(rows, columns) >= share)
    state = layer.state_dict()
    assert state["values"].numel() == int(layer.mask.sum())
    assert ("bias" in state) == bias
    again = MaskedLinear(columns, rows, bias).eval()
    again.load_state_dict(state)
    assert torch.equal(again.mask, layer.mask)
    assert torch.equal(again.weight, layer.weight)
    x = torch.randn(3, columns)
    assert torch.equal(again(x), layer(x))


def test_a_file_that_does_not_fit_is_refused() -> None:
    layer = MaskedLinear(8, 4, False)
    state = layer.state_dict()
    state["values"] = state["values"][:-1]
    with pytest.raises(RuntimeError, match="31 values do not fit"):
        MaskedLinear(8, 4, False).load_state_dict(state)


def test_zeros_get_no_gradient_and_stay_in_training() -> None:
    layer = MaskedLinear(16, 8, False)
    layer.set_mask(magnitude_mask(layer.weight.detach().abs(), 0.5))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 16)).square().sum().backward()
        assert layer.weight.grad is not None
        assert not layer.weight.grad[~layer.mask].any()
        optimizer.step()
    assert not layer.weight[~layer.mask].any()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_two_of_each_four_stay_the_largest(rows: int, fours: int, seed: int) -> None:
    scores = torch.rand(rows, 4 * fours, generator=torch.Generator().manual_seed(seed))
    mask = two_of_four_mask(scores).view(-1, 4)
    assert mask.sum(1).eq(2).all()
    by_four = scores.view(-1, 4)
    assert (by_four.masked_fill(~mask, 2).amin(1) >= by_four.masked_fill(mask, -1).amax(1)).all()


def test_masking_a_layer_of_a_model_keeps_what_its_zeros_give() -> None:
    model = small_model()
    name = "blocks.0.ff.up"
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    mask = magnitude_mask(layer.weight.detach().abs(), 0.7)
    with torch.no_grad():
        layer.weight.masked_fill_(~mask, 0)
        expected = model(tokens())
        mask_linear(model, name)
        assert torch.equal(model(tokens()), expected)
    replaced = model.get_submodule(name)
    assert isinstance(replaced, MaskedLinear)
    assert torch.equal(replaced.mask, mask)
