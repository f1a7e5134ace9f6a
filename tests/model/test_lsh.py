"""LSH attention equals its plain form."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model import lsh
from lmforge.model.gpt import GPTConfig
from lmforge.model.lsh import ITSELF, LSH, bucket_sides
from lmforge.model.rope import rotations
from tests.model import reference
from tests.model.test_attention import inputs
from tests.model.test_gpt import PLAIN


def shape(**changes: object) -> GPTConfig:
    return dataclasses.replace(PLAIN, context=64, **changes)  # type: ignore[arg-type]


def assert_close_with_gradients(
    fast: torch.Tensor, plain: torch.Tensor, wanted: list[torch.Tensor], bound: float
) -> None:
    torch.testing.assert_close(fast, plain, rtol=bound, atol=bound)
    weights = torch.randn(fast.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(fast.dtype)
    for a, b in zip(
        torch.autograd.grad(fast, wanted, weights), torch.autograd.grad(plain, wanted, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound * 10)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_lsh_equals_its_plain_form(length: int, span: int, rounds: int, turned: bool, seed: int) -> None:
    config = shape(attention=("lsh",), lsh_span=span, lsh_rounds=rounds)
    mixer = LSH(config, seed)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        turns = (
            rotations(config, 64)[:length].to(torch.complex128 if dtype == torch.float64 else torch.complex64)
            if turned
            else None
        )
        q, _, v = inputs(2, length, 2, 2, 8, dtype, seed)
        assert_close_with_gradients(mixer(q, q, v, turns), reference.lsh(mixer, q, v, turns), [q, v], bound)


def test_lsh_gradients_without_the_kernel() -> None:
    config = shape(attention=("lsh",), lsh_span=5)
    mixer = LSH(config, 0)
    q, _, v = inputs(1, 33, 2, 2, 8, torch.float64, 0)
    sort = lsh._Sorted(mixer.buckets_of(q.transpose(1, 2))[0], 5, torch.float64)
    queries, keys, values = (
        pick(x.detach().transpose(1, 2)).requires_grad_()
        for pick, x in ((sort.queries, q), (sort.keys, q), (sort.keys, v))
    )
    scores = queries @ keys.transpose(-1, -2) / 8**0.5 + sort.mask
    out = scores.softmax(-1) @ values
    gradient = torch.randn_like(out)
    ours = lsh._plain_backward(gradient, queries, keys, values, out, scores.logsumexp(-1, keepdim=True), sort.mask)
    for a, b in zip(ours, torch.autograd.grad(out, (queries, keys, values), gradient), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_lsh_equals_full_attention_when_one_bucket_covers_the_text() -> None:
    config = shape(attention=("lsh",), lsh_span=64, lsh_rounds=3)
    assert bucket_sides(config) == (1,)
    q, _, v = inputs(2, 50, 2, 2, 8, torch.float64, 1)
    ours = LSH(config, 0)(q, q, v, None)
    q, v = q.transpose(1, 2), v.transpose(1, 2)
    mask = torch.full((50, 50), float("-inf"), dtype=torch.float64).triu(1) + ITSELF * torch.eye(
        50, dtype=torch.float64
    )
    full = F.scaled_dot_product_attention(q, F.normalize(q, dim=-1), v, attn_mask=mask)
    torch.testing.assert_close(ours, full, rtol=1e-10, atol=1e-10)


def test_like_vectors_share_buckets_and_buckets_grow_with_the_context() -> None:
    config = GPTConfig(
        vocab_size=9, context=30_000, layers=1, d_model=32, heads=1, kv_heads=1, d_ff=4, attention=("lsh",)
    )
    mixer = LSH(config, 0)
    assert 30_000 / 64 <= mixer.buckets < 30_000 / 64 * 1.1
    x = torch.randn(1, 1, 500, 32)
    near, far = mixer.buckets_of(x + 0.05 * torch.randn_like(x)), mixer.buckets_of(torch.randn(1, 1, 500, 32))
    own = mixer.buckets_of(x)
    assert (own == near).float().mean() > 0.6 > 0.05 > (own == far).float().mean()
    assert own.unique().numel() > 300
