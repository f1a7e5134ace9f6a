"""Each softmax kind equals its plain form, and its cache stays small."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model.gpt import GPTConfig
from lmforge.model.rope import rotations
from lmforge.model.softmax_attention import Softmax, saves_attention
from tests.model import reference
from tests.model.test_attention import inputs
from tests.model.test_gpt import PLAIN, network, tokens

SOFTMAX = ["full", "window", "strided", "pooled", "sparse"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(SOFTMAX),
    pooling=st.sampled_from(["mean", "max", "conv"]),
    length=st.integers(1, 70),
    window=st.integers(1, 40),
    stride=st.integers(1, 20),
    pool=st.integers(1, 20),
    rows=st.integers(1, 2),
    groups=st.integers(1, 2),
    turned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fast_equals_plain(
    kind: str,
    pooling: str,
    length: int,
    window: int,
    stride: int,
    pool: int,
    rows: int,
    groups: int,
    turned: bool,
    seed: int,
) -> None:
    config = GPTConfig(
        vocab_size=9,
        context=80,
        layers=1,
        d_model=16 * groups,
        heads=2 * groups,
        kv_heads=2,
        d_ff=4,
        attention=(kind,),
        window=window,
        stride=stride,
        pool=pool,
        pooling=pooling,
    )
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        mixer = Softmax(config, kind).to(dtype)
        if mixer.pool_keys is not None:
            torch.nn.init.normal_(mixer.pool_keys, generator=torch.Generator().manual_seed(seed))
        turns = (
            rotations(config, 100)[:length].to(torch.complex128 if dtype == torch.float64 else torch.complex64)
            if turned
            else None
        )
        x = inputs(rows, length, 2 * groups, 2, 8, dtype, seed)
        fast, plain = mixer(*x, turns), reference.softmax_kind(mixer, *x, turns)
        torch.testing.assert_close(fast, plain, rtol=bound, atol=bound)
        weights = torch.randn(fast.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(
            dtype
        )
        wanted = [*x, *mixer.parameters()]
        ours = torch.autograd.grad(fast, wanted, weights, allow_unused=True)
        theirs = torch.autograd.grad(plain, wanted, weights, allow_unused=True)
        for a, b, parameter in zip(ours, theirs, wanted, strict=True):
            a, b = (torch.zeros_like(parameter) if g is None else g for g in (a, b))
            torch.testing.assert_close(a, b, rtol=bound, atol=bound * 10)


def test_sparse_equals_full_when_its_window_covers_the_text() -> None:
    config = dataclasses.replace(PLAIN, attention=("sparse",), window=24, stride=4, pool=4)
    sparse, full = network(config), network(PLAIN)
    with torch.no_grad():
        assert torch.equal(sparse(tokens(2, 24)), full(tokens(2, 24)))
        assert not torch.allclose(network(dataclasses.replace(config, window=8))(tokens(2, 24)), full(tokens(2, 24)))


def test_caches_are_bounded() -> None:
    def held(kind: str, capacity: int) -> int:
        config = GPTConfig(
            vocab_size=9, context=30_000, layers=2, d_model=64, heads=2, kv_heads=2, d_ff=4, attention=(kind,)
        )
        x = torch.zeros(1, 1, 2, 32)
        return Softmax(config, kind).new_cache(x, x, capacity, torch.float32).nbytes

    assert held("window", 30_000) == held("window", 1_000)
    assert held("sparse", 30_000) < held("full", 30_000) / 50  # 256 + 30,000/1,024 + 30,000/128 keys of 30,000
    assert held("sparse", 30_000) < 2 * held("sparse", 1_000)


def test_what_attention_mixed_is_kept_where_making_it_takes_longer_than_its_projections() -> None:
    config = dataclasses.replace(PLAIN, context=256, window=20, stride=8, pool=8)  # 20 + 32 + 32 keys against 2 * 16
    assert saves_attention(config, "sparse")
    assert not any(saves_attention(config, kind) for kind in ("full", "window", "lsh", "linear"))
