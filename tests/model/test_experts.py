"""Experts equal their plain form, drop nothing, and are kept even; router losses add gradients in the loss's own
scale."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model.attention import ForwardContext
from lmforge.model.experts import BIAS_GRADIENT, BIAS_STEP, ROUTER_SCALE, SCALE, Experts, dispatch_here, grouped_linear
from lmforge.model.gpt import GPTConfig
from tests.model.test_gpt import PLAIN, network, tokens

EXPERTS = dataclasses.replace(PLAIN, experts=4, experts_active=2, experts_shared=1, d_ff=32)


def experts(config: GPTConfig, seed: int = 0) -> Experts:
    torch.manual_seed(seed)
    return Experts(config, 0).double()


def plain(part: Experts, x: torch.Tensor) -> torch.Tensor:
    """Token by token."""
    rows = []
    for token in x.flatten(0, -2):
        scores = (part.router(token) * ROUTER_SCALE / math.sqrt(len(token))).softmax(-1)
        ranking = scores if part.choice_bias is None else scores.log() + BIAS_STEP * part.choice_bias
        chosen = ranking.topk(part.active).indices
        weights = SCALE * part.active * scores[chosen] / scores[chosen].sum()
        y = sum(
            (w * part.experts[int(i)](token) for w, i in zip(weights.to(x.dtype), chosen, strict=True)),
            torch.zeros_like(token),
        )
        rows.append(y if part.shared is None else y + part.shared(token))
    return torch.stack(rows).view(x.shape)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([0, 1]),
    st.sampled_from(["relu", "swiglu"]),
    st.integers(0, 99),
)
def test_experts_equal_their_plain_form(
    rows: int, length: int, active: int, shared: int, activation: str, seed: int
) -> None:
    part = experts(
        dataclasses.replace(
            EXPERTS, experts_active=active, experts_shared=shared, activation=activation, balance="none"
        ),
        seed,
    )
    x = torch.randn(
        rows, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True
    )
    forward_ctx = ForwardContext()
    ours, theirs = part(x, forward_ctx), plain(part, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert int(forward_ctx.loads[0].sum()) == rows * length * active  # nobody is dropped
    for a, b in zip(
        *(torch.autograd.grad(y.sum(), [x, *part.experts[0].parameters()], allow_unused=True) for y in (ours, theirs)),
        strict=True,
    ):
        if b is not None or a is not None:
            ours, wanted = a if a is not None else torch.zeros_like(b), b if b is not None else torch.zeros_like(a)
            torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


def test_units_are_shared_out() -> None:
    config = dataclasses.replace(PLAIN, d_model=16, d_ff=64, experts=16, experts_active=2)
    part = Experts(config, 0)
    assert [expert.up.weight.shape[0] for expert in part.experts] == [4] * 16


def test_the_loss_reports_nats_only_and_the_router_learns_in_its_scale() -> None:
    x, y = tokens(2, 12), tokens(2, 12, 1)
    model = network(dataclasses.replace(EXPERTS, balance="loss"))
    with torch.no_grad():
        expected = model.loss(x, y)
    loss = model.loss(x, y)
    assert torch.equal(loss, expected)
    (loss / 24).backward()
    whole = model.blocks[0].ff.router.weight.grad.clone()
    model.zero_grad()
    (model.loss(x, y) / 48).backward()
    torch.testing.assert_close(model.blocks[0].ff.router.weight.grad, whole / 2, rtol=1e-4, atol=1e-7)


def test_the_bias_gets_its_load_above_the_mean_as_gradient() -> None:
    x = tokens(2, 12)
    model = network(EXPERTS)
    (model.loss(x, x) / 24).backward()
    forward_ctx = model._place(x, None, None, None)
    with torch.no_grad():
        model._layers(x, forward_ctx, None)
    bias = model.blocks[1].ff.choice_bias
    torch.testing.assert_close(bias.grad, BIAS_GRADIENT * (forward_ctx.loads[1] * 2 - 24) / 24)
    assert float(bias.grad.sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_an_uneven_router_becomes_even(balance: str) -> None:
    torch.manual_seed(0)
    part = Experts(dataclasses.replace(PLAIN, experts=8, experts_active=2, d_ff=64, balance=balance), 0)
    part.router.requires_grad_(balance == "loss")  # with nothing else to learn, the z-loss alone would drive the router
    optimizer = torch.optim.AdamW(part.parameters(), lr=5e-3, weight_decay=0)
    uneven = []
    for _ in range(200):
        forward_ctx = ForwardContext(scale=torch.tensor(1 / 1024))
        part(torch.randn(4, 256, 16) + 0.5, forward_ctx).sum().mul(0).backward()
        optimizer.step()
        optimizer.zero_grad()
        uneven.append(float(forward_ctx.loads[0].max() / forward_ctx.loads[0].float().mean()))
    assert uneven[0] > 1.5
    assert sum(uneven[-20:]) / 20 < 1.2


@given(st.lists(st.integers(0, 5), min_size=3, max_size=3), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_one_grouped_product_equals_slices(load: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(16, 8, bias=False) for _ in load]
    x, counts = torch.randn(sum(load) + 1, 16), torch.tensor([*load[:2], load[2] + 1])
    torch.testing.assert_close(
        grouped_linear(x, counts, layers, fused=True),
        grouped_linear(x, counts, layers, fused=False),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("biases", [False, True])
def test_replaced_experts_are_called_one_by_one_and_give_the_same(biases: bool) -> None:
    part = experts(dataclasses.replace(EXPERTS, biases=biases))
    x = torch.randn(9, 16, dtype=torch.float64)
    chosen, weights = torch.randint(0, 4, (9, 2)), torch.rand(9, 2, dtype=torch.float64)
    wrapped = [torch.nn.Sequential(expert) for expert in part.experts]
    torch.testing.assert_close(
        dispatch_here(x, chosen, weights, list(part.experts)), dispatch_here(x, chosen, weights, wrapped)
    )


def test_experts_begin_alike_as_a_dense_layer_of_their_width() -> None:
    model = network(dataclasses.replace(EXPERTS, experts_shared=0))
    model.initialise(3)
    part = model.blocks[0].ff
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0)).to(part.router.weight.dtype)
    torch.testing.assert_close(part(x, ForwardContext()), SCALE * part.active * part.experts[0](x))
    weights = [expert.up.weight for expert in part.experts]
    assert all(torch.equal(weights[0], other) for other in weights)
    assert len({weight.data_ptr() for weight in weights}) == len(weights)  # equal, not shared
