"""Decoding equals the full pass whatever the kind, the steps and the rows; heads come from the widths of tensors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.generate.decode import Sampling, decode
from lmforge.model.attention import Attention, ForwardContext, KVCache
from lmforge.model.gpt import GPT, GPTConfig
from tests.model.test_gpt import PLAIN, network, tokens

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


def test_half_precision_goes_through_the_fast_path() -> None:
    model = GPT(dataclasses.replace(MIXED[3], attention=("sparse", "lsh"), kv_heads=2))
    model.initialise(1)
    x = tokens(2, 50)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, x)
    loss.backward()
    assert torch.allclose(loss, model.loss(x, x), rtol=1e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["full", "sparse", "lsh", "linear"])
@pytest.mark.parametrize("biases", [False, True])
def test_a_layer_with_some_of_its_heads_runs_as_it_is_and_the_parts_add_up(kind: str, biases: bool) -> None:
    """As tensor parallelism cuts it: the rows of `qkv` and the columns of `out` that belong to a part of the heads."""
    kv_heads = 4 if kind == "lsh" else 2
    config = dataclasses.replace(
        PLAIN, attention=(kind,), d_model=32, heads=4, kv_heads=kv_heads, window=5, pool=4, biases=biases, qk_norm=True
    )
    torch.manual_seed(0)
    layer = Attention(config, 0).double()
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    with torch.no_grad():
        whole, total = layer(x, ForwardContext()), torch.zeros(2, 20, 32, dtype=torch.float64)
        for part in range(2):
            heads = torch.arange(4 * 8).view(2, 16)[part]
            keys = 32 + torch.arange(kv_heads * 8).view(2, -1)[part]
            rows = torch.cat((heads, keys) if kind == "lsh" else (heads, keys, keys + kv_heads * 8))
            narrow = copy.deepcopy(layer)
            narrow.qkv.weight = torch.nn.Parameter(layer.qkv.weight[rows])
            narrow.out.weight = torch.nn.Parameter(layer.out.weight[:, heads])
            if biases:
                narrow.qkv.bias = torch.nn.Parameter(layer.qkv.bias[rows])
                narrow.out.bias = torch.nn.Parameter(layer.out.bias / 2)
            total += narrow(x, ForwardContext())
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-10)


def test_a_cache_holds_the_heads_that_a_layer_has() -> None:
    model, x = network(dataclasses.replace(PLAIN, heads=4, kv_heads=4)).double(), tokens(2, 14)
    layer = model.blocks[0].attention
    rows = torch.cat([torch.arange(4, 12) + part * 16 for part in range(3)])  # the second and the third head
    layer.qkv.weight = torch.nn.Parameter(layer.qkv.weight[rows])
    layer.out.weight = torch.nn.Parameter(layer.out.weight[:, 4:12])
    with torch.no_grad():
        cache = KVCache(2, 24, x.device, torch.float64)
        parts = [model(x[:, :9], cache), *(model(x[:, t : t + 1], cache) for t in range(9, 14))]
        torch.testing.assert_close(torch.cat(parts, 1), model(x), rtol=1e-9, atol=1e-9)
    assert [cache.layers[number].store.shape[2] for number in (0, 1)] == [2, 4]
