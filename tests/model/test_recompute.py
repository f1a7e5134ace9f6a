"""Gradients with activations made again equal those with activations kept; what is kept does not grow as without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmforge.model import recompute as module
from lmforge.model.gpt import GPT, GPTConfig
from tests.model.test_attention import MIXED
from tests.model.test_gpt import PLAIN, SHAPES, network, tokens
from tests.model.test_lsh import shape


def bands(_config: GPTConfig, kind: str) -> bool:
    """What attention mixed is kept wherever it can be used, also in networks so small that it would not be worth it."""
    return kind not in ("full", "lsh", "linear")


TWO = shape(attention=("sparse", "lsh"), window=8, pool=4, lsh_span=4)


@pytest.mark.parametrize("config", [*SHAPES, TWO, shape(experts=4, activation="swiglu"), *MIXED])
@pytest.mark.parametrize("recompute", [False, True])
def test_reversible_gradients_equal_the_stored_ones(
    config: GPTConfig, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmforge.model.attention.saves_attention", bands)
    model = network(dataclasses.replace(config, residual="reversible", layers=4, recompute=recompute)).double()
    x, y, documents = tokens(2, 20), tokens(2, 20, 1), torch.arange(40).view(2, 20) // 7
    model.loss(x, y, documents).backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr("lmforge.model.gpt.reversible", module._run)
    model.loss(x, y, documents).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    "config", [*SHAPES, *MIXED, shape(experts=4, activation="swiglu")], ids=lambda c: "-".join(c.attention)
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_recomputed_gradients_equal_the_stored_ones(
    config: GPTConfig, packed: bool, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keeps:
        monkeypatch.setattr("lmforge.model.attention.saves_attention", bands)
    monkeypatch.setattr(module, "TOKENS", 7)  # so that the feed-forward part is cut
    model, stored = (
        network(dataclasses.replace(config, layers=2, recompute=again)).double() for again in (True, False)
    )
    x, y, documents = tokens(2, 20), tokens(2, 20, 1), torch.arange(40).view(2, 20) // 7 if packed else None
    for each in (model, stored):
        each.loss(x, y, documents).backward()
    for (name, ours), theirs in zip(model.named_parameters(), stored.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_a_frozen_block_and_half_precision_are_made_again_too() -> None:
    model, stored = (
        network(dataclasses.replace(MIXED[3], layers=2, recompute=recompute)) for recompute in (True, False)
    )
    for each in (model, stored):
        each.blocks[1].ff.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = each.loss(tokens(2, 20), tokens(2, 20, 1))
        loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), stored.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == name.startswith("blocks.1.ff."), name
        if ours.grad is not None:
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=0.05, atol=0.02 * float(theirs.grad.abs().max()), msg=name
            )


def test_what_is_kept_of_a_reversible_stack_does_not_grow_with_depth() -> None:
    def kept(layers: int, residual: str) -> int:
        model, sizes = GPT(dataclasses.replace(PLAIN, layers=layers, residual=residual)), {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(tokens(4, 24), tokens(4, 24))
        assert loss.requires_grad
        return sum(sizes.values())

    assert kept(8, "reversible") < 1.1 * kept(2, "reversible")
    assert kept(8, "plain") > 3 * kept(2, "plain")
