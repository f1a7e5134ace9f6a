"""Zeros of inputs, and how many columns nobody would touch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmforge.compress.sparse_input import Skipped, SparseInput


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_the_k_largest_stay(width: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, count = torch.randn(4, width), min(count, width)
    sparse = SparseInput(nn.Identity(), count=count)(x)
    assert ((sparse != 0).sum(1) == count).all()
    assert (sparse[sparse != 0] == x[sparse != 0]).all()
    assert (sparse.abs().sum(1) - x.abs().topk(count).values.sum(1)).abs().max() < 1e-4


def test_what_a_token_and_what_eight_would_skip() -> None:
    counted = Skipped()
    x = torch.zeros(16, 10)
    x[:, 0] = 1
    x[3, 1] = x[12, 2] = 1
    counted.see(x)
    assert counted.alone == pytest.approx(1 - 18 / 160)
    assert counted.together == pytest.approx(0.8)
    counted.see(torch.zeros(16, 10))
    assert counted.alone == pytest.approx((2 - 18 / 160) / 2)


def test_a_threshold_lets_the_gradient_of_what_is_left_pass() -> None:
    x = torch.tensor([0.1, -0.5, 0.3, 2.0], requires_grad=True)
    sparse = SparseInput(nn.Identity(), 0.3)
    sparse(x).sum().backward()
    assert sparse(x).tolist() == [0, -0.5, 0, 2]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0, 1]
