"""Each softmax kind equals its plain form, decoding equals the full pass whatever the steps and the rows, caches stay
small."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.generate.decode import Sampling, decode
from lmforge.model.attention import Attention, KVCache, Softmax
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.rope import rotations
from tests.model import reference
from tests.model.test_gpt import PLAIN, network, tokens

SOFTMAX = ["full", "window", "strided", "pooled", "sparse"]
MIXED = [
    dataclasses.replace(
        PLAIN,
        context=64,
        attention=kinds,
        window=6,
        stride=5,
        pool=4,
        pooling=pooling,
        lsh_span=4,
        lsh_rounds=2,
        feature_map=features,
        positions=positions,
        heads=heads,
        kv_heads=2,
        d_model=32,
    )
    for kinds, pooling, features, positions, heads in [
        (("window",), "mean", "elu", "rope", 4),
        (("strided",), "mean", "elu", "learned", 2),
        (("pooled",), "max", "elu", "rope", 4),
        (("sparse",), "mean", "elu", "rope", 2),
        (("sparse", "full"), "conv", "elu", "none", 4),
        (("lsh",), "mean", "elu", "rope", 2),
        (("linear",), "mean", "elu", "rope", 4),
        (("linear", "lsh"), "mean", "learned", "none", 2),
    ]
]


def inputs(
    rows: int, length: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype, seed: int
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, length, heads, width), *[(rows, length, kv_heads, width)] * 2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


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


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(range(len(MIXED))),
    st.integers(1, 40),
    st.lists(st.sampled_from([1, 1, 1, 2, 5, 9]), max_size=12),
    st.integers(1, 3),
)
def test_decoding_equals_the_full_pass(shape: int, first: int, steps: list[int], rows: int) -> None:
    model = network(MIXED[shape]).double()
    x = tokens(rows, min(64, first + sum(steps)))
    with torch.no_grad():
        full = model(x)
        cache = KVCache(rows, 64, x.device, torch.float64)
        parts, at = [], 0
        for size in (first, *steps):
            if at < x.shape[1]:
                parts.append(model(x[:, at : at + size], cache))
                at += size
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(range(len(MIXED))),
    st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=45), min_size=1, max_size=4),
)
def test_rows_of_any_length_decode_as_if_alone(shape: int, prompts: list[list[int]]) -> None:
    model = network(MIXED[shape]).double()
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    more = tokens(len(prompts), 12, seed=3)
    with torch.no_grad():
        cache = KVCache(len(prompts), 64, padded.device, torch.float64)
        first = model.hidden(padded, cache, lengths=lengths)
        rest = [model.hidden(more[:, :3], cache), *(model.hidden(more[:, t : t + 1], cache) for t in range(3, 12))]
        for row, prompt in enumerate(prompts):
            alone = model.hidden(torch.cat((torch.tensor(prompt), more[row]))[None])[0]
            torch.testing.assert_close(first[row, : len(prompt)], alone[: len(prompt)], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                torch.cat([part[row] for part in rest]), alone[len(prompt) :], rtol=1e-9, atol=1e-9
            )
        kept = torch.tensor([len(prompts) - 1])
        cache.select(kept)
        again = model.hidden(more[kept, :1], cache)
        alone = model.hidden(torch.cat((torch.tensor(prompts[-1]), more[-1], more[-1, :1]))[None])[0, -1]
    torch.testing.assert_close(again[0, 0], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", MIXED, ids=lambda c: "-".join(c.attention))
def test_no_token_sees_a_later_one(config: GPTConfig) -> None:
    model, x = network(config), tokens(1, 60)
    for at in (1, 20, 37, 59):
        changed = x.clone()
        changed[0, at:] = (changed[0, at:] + 1) % 50
        with torch.no_grad():
            assert torch.equal(model(x)[:, :at], model(changed)[:, :at])


@pytest.mark.parametrize("config", MIXED, ids=lambda c: "-".join(c.attention))
def test_the_decoding_loop_serves_every_kind(config: GPTConfig) -> None:
    model, history = network(config), [3, 1, 4, 1, 5]
    expected = list(history)
    with torch.no_grad():
        for _ in range(20):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    drawn = [step[0].token for step in decode(model, [history], [Sampling(max_tokens=20, temperature=0, stop_ids=())])]
    assert drawn == expected[5:]


def test_caches_are_bounded() -> None:
    def held(kind: str, capacity: int) -> int:
        config = GPTConfig(
            vocab_size=9, context=30_000, layers=2, d_model=64, heads=2, kv_heads=2, d_ff=4, attention=(kind,)
        )
        x = torch.zeros(1, 1, 2, 32)
        layers = [Attention(config, layer).mixer.new_cache(x, x, capacity, torch.float32) for layer in range(2)]
        return sum(layer.nbytes for layer in layers)

    assert held("window", 30_000) == held("window", 1_000)
    assert held("linear", 30_000) == held("linear", 1_000)
    assert held("sparse", 30_000) < held("full", 30_000) / 50  # 256 + 30,000/1,024 + 30,000/128 keys of 30,000
    assert held("sparse", 30_000) < 2 * held("sparse", 1_000)


def test_half_precision_goes_through_the_fast_path() -> None:
    model = GPT(dataclasses.replace(MIXED[3], attention=("sparse", "lsh"), kv_heads=2))
    model.initialise(1)
    x = tokens(2, 50)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, x)
    loss.backward()
    assert torch.allclose(loss, model.loss(x, x), rtol=1e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
