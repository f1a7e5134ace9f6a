"""Gradients with activations made again equal those with activations kept; what is kept does not grow as without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmforge.model import recompute as module
from lmforge.model.gpt import GPT, Blocks, GPTConfig
from tests.model.test_attention import MIXED
from tests.model.test_gpt import DIFFERENT, PARALLEL, PLAIN, SHAPES, network, tokens
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
    "config", [*SHAPES, PARALLEL, *MIXED, shape(experts=4, activation="swiglu")], ids=lambda c: "-".join(c.attention)
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


MODES = [
    {},
    {"recompute": True},
    {"residual": "reversible"},
    {"residual": "reversible", "recompute": True},
]


def gradients(model: GPT, documents: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Of the loss by logits, so that the head is called too; a gradient that does not come is zeros."""
    model.zero_grad()
    logits = model(tokens(2, 20), documents=documents)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens(2, 20, 1).flatten()).backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("config", DIFFERENT)
@pytest.mark.parametrize("packed", [False, True])
def test_layers_that_differ_are_made_again_too(config: GPTConfig, packed: bool) -> None:
    documents = torch.arange(40).view(2, 20) // 7 if packed else None
    for residual in ("plain", "reversible"):
        stored, again = (
            network(dataclasses.replace(config, residual=residual, recompute=recompute)).double()
            for recompute in (False, True)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lmforge.model.gpt.reversible", module._run)  # as autograd does it
            wanted = gradients(stored, documents)
        for model in (again, stored):
            ours = gradients(model, documents)
            for name in wanted:
                torch.testing.assert_close(ours[name], wanted[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    "config",
    [
        dataclasses.replace(PLAIN, qk_norm=True),
        shape(experts=2, experts_shared=1),
        MIXED[7],
        *DIFFERENT,
    ],
)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_forward_hook_on_every_module_fires_and_changes_no_gradient(
    config: GPTConfig, mode: dict[str, object]
) -> None:
    model = network(dataclasses.replace(config, **mode)).double()
    wanted, fired = gradients(model), set()
    called = {
        name for name, part in model.named_modules() if name and not isinstance(part, torch.nn.ModuleList | Blocks)
    }
    for name in called:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.add(name))
    ours = gradients(model)
    assert fired == called
    for name in wanted:
        torch.testing.assert_close(ours[name], wanted[name], rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_weights_that_a_hook_gathers_and_lets_go_are_there_when_they_are_read(
    mode: dict[str, object], one_rank: None
) -> None:
    """Fully sharded (Zhao et al. 2023), block by block: outside a block's call its weights are no plain tensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    model = network(dataclasses.replace(PLAIN, layers=4, **mode))
    x, y = tokens(2, 20), tokens(2, 20, 1)
    model.loss(x, y).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    mesh = init_device_mesh("cpu", (1,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")
    model.loss(x, y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), wanted[name], rtol=1e-4, atol=1e-5, msg=name)
