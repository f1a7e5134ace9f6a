"""The formulas against the network itself: its parameters, torch's own count of operations, the tensors that autograd keeps."""

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmforge.model.cost import (
    activation_bytes_per_token,
    active_parameters,
    decode_flops_per_token,
    decoding_bytes,
    flops_per_token,
    parameters,
    training_bytes,
)
from lmforge.model.gpt import GPT, GPTConfig, KVCache

SMALL = GPTConfig(vocab_size=300, context=64, layers=2, d_model=64, heads=4, kv_heads=4, d_ff=192)


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    width = heads * 2 * draw(st.integers(2, 8))
    return GPTConfig(
        vocab_size=draw(st.integers(257, 400)), context=draw(st.sampled_from([8, 32, 48])), layers=draw(st.integers(1, 3)), d_model=width,
        heads=heads, kv_heads=kv_heads, d_ff=draw(st.integers(1, 200)), activation=draw(st.sampled_from(["relu", "relu2", "gelu"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])), positions=draw(st.sampled_from(["rope", "learned"])),
        biases=draw(st.booleans()), qk_norm=draw(st.booleans()), ngram_rows=draw(st.sampled_from([0, 50])),
    )  # fmt: skip


@settings(deadline=None)
@given(configs())
def test_parameters_are_the_networks(config: GPTConfig) -> None:
    assert sum(parameters(config).values()) == sum(p.numel() for p in GPT(config).parameters())


@settings(deadline=None, max_examples=20)
@given(configs())
def test_flops_are_what_torch_counts(config: GPTConfig) -> None:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GPT(config)(torch.zeros(2, config.context, dtype=torch.long))
    ours = flops_per_token(config, config.context)
    # Torch counts the whole T×T product, of which causal attention needs (T + 1)/(2T).
    ours["attention"] *= 2 * config.context / (config.context + 1)
    assert 2 * config.context * sum(ours.values()) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_training_is_three_times_the_forward_pass() -> None:
    model = GPT(SMALL)
    tokens = torch.zeros(2, 64, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    ours = flops_per_token(SMALL, 64)
    ours["attention"] *= 2 * 64 / 65
    assert 3 * 2 * 64 * sum(ours.values()) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_decoding_flops_are_what_torch_counts() -> None:
    model = GPT(SMALL)
    with torch.no_grad():
        cache = KVCache(SMALL, 3, 64, torch.device("cpu"))
        model(torch.ones(3, 40, dtype=torch.long), cache)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.ones(3, 1, dtype=torch.long), cache)
    assert 3 * sum(decode_flops_per_token(SMALL, 40).values()) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def kept_bytes(config: GPTConfig, rows: int, half: bool) -> int:
    """Bytes of the distinct storages that autograd keeps of one forward pass, parameters and their gradients left out."""
    model = GPT(config)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), model.rotations]}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        of_weights = {tuple(p.shape) for p in model.parameters()}  # autocast's copies, the gradient of the output matrix
        if storage.data_ptr() not in own and not of_weights & {tuple(tensor.shape), tuple(tensor.shape)[::-1]}:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tokens = torch.randint(0, config.vocab_size, (rows, config.context))
    cast = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), cast:
        model.loss(tokens, tokens)
    return sum(kept.values())


VARIANTS = [
    {}, {"kv_heads": 2}, {"activation": "relu2"}, {"activation": "gelu", "biases": True}, {"norm": "layernorm", "biases": True},
    {"positions": "learned"}, {"qk_norm": True}, {"qk_norm": True, "norm": "layernorm", "positions": "learned", "ngram_rows": 77},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_activations_are_what_autograd_keeps(changes: dict[str, object], half: bool) -> None:
    config = dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]
    assert 5 * 64 * activation_bytes_per_token(config, half) == pytest.approx(kept_bytes(config, 5, half), rel=0.03)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_bytes_follow_the_optimizers(optimizer: str) -> None:
    from lmforge.recipe import Train
    from lmforge.train.optim import build_optimizers

    model = GPT(SMALL)
    tokens = torch.zeros(1, 64, dtype=torch.long)
    model.loss(tokens, tokens).backward()
    optimizers = build_optimizers(model, Train(optimizer=optimizer))  # type: ignore[arg-type]
    for each in optimizers.values():
        each.step()
    kept = sum(t.nbytes for each in optimizers.values() for state in each.state.values() for t in state.values() if t.ndim)
    ours = training_bytes(SMALL, 64, optimizer)
    assert ours["optimizer"] == pytest.approx(kept, rel=1e-6)
    assert ours["weights"] == ours["gradients"] == sum(p.nbytes for p in model.parameters())


def test_the_cache_is_the_caches() -> None:
    cache = KVCache(SMALL, 3, 20, torch.device("cpu"))
    assert decoding_bytes(SMALL, 3, 20)["cache"] == pytest.approx(cache.nbytes, rel=0.06)


def test_what_is_not_looked_up_is_not_active() -> None:
    assert active_parameters(SMALL) == sum(parameters(SMALL).values())
    config = dataclasses.replace(SMALL, ngram_rows=1000, positions="learned")
    assert active_parameters(config) == active_parameters(SMALL) + 3 * 64


def test_the_1_2_trillion_target() -> None:
    """design.md section 2: 300·(4·18144² + 2·18144·65536) + 5·10⁶·18144 parameters; 6·N·D is 9.35·10²⁴ for 1.3·10¹² tokens."""
    config = GPTConfig(vocab_size=5_000_000, context=30_000, layers=300, d_model=18_144, heads=216, kv_heads=216, d_ff=65_536)
    counted = parameters(config)
    norms = counted.pop("norms")
    assert sum(counted.values()) == 300 * (4 * 18_144**2 + 2 * 18_144 * 65_536) + 5_000_000 * 18_144
    assert norms < 2e7
    products = {name: flops for name, flops in flops_per_token(config, 1).items() if name != "attention"}
    assert 3 * sum(products.values()) * 1.3e12 == pytest.approx(9.35e24, rel=0.01)
