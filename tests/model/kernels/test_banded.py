"""The band with extras: its mask function, and the GPU's path compared with the CPU's where it can run (forward)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model.kernels.banded import banded_attention, masked_attention, visible, with_means, with_strided


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.lists(st.integers(0, 50), max_size=6), st.integers(0, 9))
def test_the_mask_function_says_what_the_kernel_does(length: int, window: int, later: list[int], seed: int) -> None:
    seen = torch.tensor(sorted(window + x for x in later), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    q, k, v, extra_k, extra_v = (
        torch.randn(2, 2, n, 4, generator=generator, dtype=torch.float64)
        for n in (length, length, length, len(seen), len(seen))
    )
    rule = visible(length, window, seen)
    query, key = torch.arange(length)[:, None], torch.arange(length + len(seen))[None]
    mask = rule(torch.tensor(0), torch.tensor(0), query, key)
    plain = F.scaled_dot_product_attention(q, torch.cat((k, extra_k), 2), torch.cat((v, extra_v), 2), attn_mask=mask)
    torch.testing.assert_close(banded_attention(q, k, v, window, extra_k, extra_v, seen), plain, rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
def test_gradients_of_extras_arrive_where_autograd_brings_them(length: int, step: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, length, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    strided, means = (
        x[:, ::step],
        x[:, : length // step * step].unflatten(1, (-1, step)).mean(2) if length >= step else x[:, :0],
    )
    ways = {with_strided: strided, with_means: means} if length >= step else {with_strided: strided}
    for way, plain in ways.items():
        same, means = way(x, step)
        torch.testing.assert_close(means, plain)
        weights = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
        (ours,) = torch.autograd.grad((same * 1.5).square().sum() + (means * weights).sum(), x)
        (theirs,) = torch.autograd.grad((x * 1.5).square().sum() + (plain * weights).sum(), x, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_flex_attention_equals_the_kernel() -> None:
    seen = torch.tensor([100, 150, 163, 227])
    q, k, v, extra_k, extra_v = (torch.randn(1, 2, n, 16) for n in (300, 300, 300, 4, 4))
    ours = banded_attention(q, k, v, 100, extra_k, extra_v, seen)
    torch.testing.assert_close(masked_attention(q, k, v, 100, extra_k, extra_v, seen), ours, rtol=1e-4, atol=1e-4)
