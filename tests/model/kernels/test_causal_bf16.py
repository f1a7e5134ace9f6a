"""Attention in bfloat16 on a CPU against the library's in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmforge.model.kernels import causal_bf16


@pytest.mark.parametrize(
    ("rows", "length", "heads", "width"),
    [(3, 1, 2, 8), (2, 64, 2, 32), (3, 128, 1, 16), (2, 200, 2, 8), (1, 300, 3, 64)],
)
def test_value_and_gradients_are_those_of_softmax_attention(
    rows: int, length: int, heads: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        causal_bf16, "_CACHED", 1 << 16
    )  # several rows, and several blocks of queries, one after another
    torch.manual_seed(0)
    whole = torch.randn(3, rows, length, heads, width).bfloat16().requires_grad_()
    y = causal_bf16.causal_attention(*whole)
    gradient = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, whole, gradient)
    exact = whole.detach().float().requires_grad_()
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in exact), is_causal=True).transpose(1, 2)
    (wanted,) = torch.autograd.grad(expected, exact, gradient.float())
    assert (y - expected).abs().max() < 0.02 * expected.abs().max()
    assert (grad - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_no_query_sees_a_later_key() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 160, 2, 8).bfloat16()
    before = causal_bf16.causal_attention(q, k, v)
    k[:, 100:], v[:, 100:] = 7, -7
    after = causal_bf16.causal_attention(q, k, v)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


def test_what_it_is_for() -> None:
    q = torch.zeros(1, 8, 2, 4, dtype=torch.bfloat16)
    assert causal_bf16.suits(q, q)
    assert not causal_bf16.suits(q.float(), q.float())
    assert not causal_bf16.suits(q, q[:, :, :1])
    assert not causal_bf16.suits(q.expand(1, 8, 2, 4).repeat(1, causal_bf16.LONGEST, 1, 1), q)
