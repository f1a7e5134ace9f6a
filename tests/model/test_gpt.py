"""The network: gradients of its lean loss, decoding equal to the full pass, causality, nanoGPT's shape."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig, KVCache

PLAIN = GPTConfig(vocab_size=50, context=24, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32)
SHAPES = [
    PLAIN,
    dataclasses.replace(PLAIN, heads=4, kv_heads=2, qk_norm=True, activation="relu2", norm="layernorm"),
    dataclasses.replace(PLAIN, positions="learned", activation="gelu", norm="layernorm", biases=True),
    dataclasses.replace(PLAIN, ngram_rows=64),
]


def network(config: GPTConfig, seed: int = 1) -> GPT:
    model = GPT(config)
    model.initialise(seed)
    with torch.no_grad():  # far from the small initial weights, so that errors show
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return model.eval()


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", SHAPES)
def test_loss_and_gradients_equal_plain_cross_entropy(config: GPTConfig) -> None:
    model, x, y = network(config), tokens(3, 10), tokens(3, 10, 1)
    y[0, :4] = -1
    loss = model.loss(x, y, chunk=7)
    (loss / 26).backward()
    lean = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
    (plain / 26).backward()
    assert torch.allclose(loss, plain, rtol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(lean[name], parameter.grad, rtol=1e-3, atol=1e-5), name


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from(range(len(SHAPES))), first=st.integers(1, 12), steps=st.lists(st.integers(1, 4), max_size=4), rows=st.integers(1, 3))
def test_decoding_equals_the_full_pass(shape: int, first: int, steps: list[int], rows: int) -> None:
    model = network(SHAPES[shape])
    total = min(24, first + sum(steps))
    x = tokens(rows, total)
    with torch.no_grad():
        full = model(x)
        cache = KVCache(model.config, rows, 24, x.device)
        parts, at = [], 0
        for size in (first, *steps):
            if at < total:
                parts.append(model(x[:, at : at + size], cache))
                at += size
    assert torch.allclose(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", SHAPES)
def test_no_token_sees_a_later_one(config: GPTConfig) -> None:
    model, x = network(config), tokens(1, 12)
    changed = x.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 50
    with torch.no_grad():
        assert torch.equal(model(x)[:, :7], model(changed)[:, :7])
        assert not torch.allclose(model(x)[:, 7:], model(changed)[:, 7:])


def test_rope_goes_on_beyond_the_context_and_learned_positions_refuse() -> None:
    with torch.no_grad():
        assert network(PLAIN)(tokens(1, 60)).shape == (1, 60, 50)
        with pytest.raises(InputError, match="learned positions reach 24"):
            network(SHAPES[2])(tokens(1, 25))


def test_rope_depends_on_distance_only() -> None:
    model = network(PLAIN)
    with torch.no_grad():
        q = torch.ones(1, 20, 1, 8)
        from lmforge.model.functions import rotate
        turned = rotate(q, model.rotations[:20])[0, :, 0]
    products = turned @ turned.T
    for distance in range(1, 6):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_initialisation_is_seeded_and_scaled() -> None:
    a, b, c = GPT(PLAIN), GPT(PLAIN), GPT(PLAIN)
    a.initialise(1), b.initialise(1), c.initialise(2)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    assert 0.015 < a.embed.weight.std() < 0.025
    assert a.blocks[0].ff.down.weight.std() < 0.02 * 0.6


def test_output_is_tied() -> None:
    model = GPT(PLAIN)
    assert model.head.weight is model.embed.weight
