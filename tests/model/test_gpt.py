"""The network: gradients of its lean loss, decoding equal to the full pass, causality, nanoGPT's shape."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.formats.native import load_model, model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig, KVCache
from lmforge.model.rope import rotations

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
@given(
    shape=st.sampled_from(range(len(SHAPES))),
    first=st.integers(1, 12),
    steps=st.lists(st.integers(1, 4), max_size=4),
    rows=st.integers(1, 3),
)
def test_decoding_equals_the_full_pass(shape: int, first: int, steps: list[int], rows: int) -> None:
    model = network(SHAPES[shape])
    total = min(24, first + sum(steps))
    x = tokens(rows, total)
    with torch.no_grad():
        full = model(x)
        cache = KVCache(rows, 24, x.device)
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
        from lmforge.model.rope import rotate

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


EXTRAS = [
    dataclasses.replace(PLAIN, activation="swiglu"),
    dataclasses.replace(PLAIN, tied=False),
    dataclasses.replace(PLAIN, positions="none"),
    dataclasses.replace(PLAIN, residual="reversible"),
    dataclasses.replace(PLAIN, ahead=2),
    dataclasses.replace(PLAIN, experts=4),
]


@pytest.mark.parametrize("config", EXTRAS)
def test_variants_decode_as_the_full_pass_and_come_back_from_disk(config: GPTConfig, tmp_path: Path) -> None:
    model, x = network(config), tokens(2, 14)
    with torch.no_grad():
        full = model(x)
        cache = KVCache(2, 24, x.device)
        parts = [model(x[:, :9], cache), *(model(x[:, t : t + 1], cache) for t in range(9, 14))]
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)
        (tmp_path / "words.json").write_text("{}")
        write_model(tmp_path, config, model_tensors(model), tmp_path / "words.json")
        assert torch.equal(load_model(tmp_path, verify=False)(x), full)


def test_swiglu_is_silu_of_the_gate_times_the_rest() -> None:
    ff = network(EXTRAS[0]).blocks[0].ff
    x = torch.randn(3, 16)
    gate, inner = (x @ ff.up.weight.T).split(32, -1)
    torch.testing.assert_close(ff(x), (gate * gate.sigmoid() * inner) @ ff.down.weight.T)


def test_untied_output_is_a_matrix_of_its_own() -> None:
    model = network(EXTRAS[1])
    model.loss(tokens(1, 5), tokens(1, 5, 1)).backward()
    assert model.head.weight is not model.embed.weight
    assert not torch.equal(model.head.weight.grad, model.embed.weight.grad)


def test_z_loss_adds_its_gradient_and_nothing_to_the_value() -> None:
    model, x, y = network(dataclasses.replace(PLAIN, z_loss=0.01)).double(), tokens(2, 9), tokens(2, 9, 1)
    y[0, :3] = -1
    loss = model.loss(x, y)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(x)
    plain = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1, reduction="sum")
    (plain + 0.01 * (logits.logsumexp(-1).square() * (y >= 0)).sum()).backward()
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_tokens_further_ahead_add_gradients_only_and_stay_within_their_document() -> None:
    model, x = network(EXTRAS[4]), tokens(1, 12)
    y, documents = x.roll(-1, 1), torch.arange(12)[None] // 6
    plain = network(PLAIN)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("ahead")})
    assert torch.allclose(model.loss(x, y), plain.loss(x, y))
    model.loss(x, y).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.ahead.parameters())
    forward_ctx = model._place(x, None, documents, None)
    last = model._layers(x, forward_ctx, None)
    changed = y.clone()
    changed[0, 6:] = (changed[0, 6:] + 3) % 50
    both = [
        model._further(last, targets.masked_fill(documents == 1, -1), documents, forward_ctx, 512)
        for targets in (y, changed)
    ]
    assert torch.equal(*both)


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn"])
def test_rope_scaling_stretches_the_slow_angles(scaling: str) -> None:
    def angles(config: GPTConfig) -> torch.Tensor:
        return rotations(config, 4)[1].angle().double()

    wide = dataclasses.replace(PLAIN, d_model=128, context=4096)
    trained, stretched = angles(wide), angles(dataclasses.replace(wide, rope_scaling=scaling, rope_trained=1024))
    factor = trained / stretched
    assert factor[-1] == pytest.approx(4, rel=1e-3)  # the slowest pair turns a quarter as far a token
    if scaling != "linear":
        assert factor[0] == pytest.approx(1, rel=1e-5)  # the fastest one stays
        assert (factor.diff() > -1e-4).all()
    size = rotations(dataclasses.replace(wide, rope_scaling=scaling, rope_trained=1024), 4).abs()
    assert size.mean() == pytest.approx(0.1 * math.log(4) + 1 if scaling == "yarn" else 1, rel=1e-5)


def test_ngrams_never_met_add_nothing() -> None:
    """Tables that begin at random put noise under every n-gram that training did not show."""
    tokens = torch.arange(12).view(2, 6)
    with_tables, without = GPT(dataclasses.replace(PLAIN, ngram_rows=64)), GPT(PLAIN)
    for model in (with_tables, without):
        model.initialise(3)
    assert torch.equal(with_tables(tokens), without(tokens))
