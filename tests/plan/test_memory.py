"""The formulas against the network itself: the tensors that autograd keeps, the allocator's peaks, caches."""

import contextlib
import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lmforge.model.gpt import GPT, GPTConfig, KVCache
from lmforge.plan.memory import (
    activation_bytes_per_token,
    decoding_bytes,
    training_bytes,
    working_bytes_per_token,
)
from tests.plan.test_cost import DIFFERING_CONFIGS, KIND_CONFIGS, LACKING_CONFIGS, SMALL


def kept_bytes(config: GPTConfig, rows: int, half: bool) -> int:
    """Bytes of the distinct storages that autograd keeps of one forward pass, parameters and their gradients left
    out."""
    model = GPT(config)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), model.rotations]}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # autocast's copies, the gradient of the output matrix
        of_weights = {tuple(p.shape) for p in model.parameters()}
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
    {},
    {"kv_heads": 2},
    {"activation": "relu2"},
    {"activation": "gelu", "biases": True},
    {"norm": "layernorm", "biases": True},
    {"positions": "learned"},
    {"qk_norm": True},
    {"qk_norm": True, "norm": "layernorm", "positions": "learned", "ngram_rows": 77},
]
PARTS: list[dict[str, object]] = [
    {"norm_placement": "post", "qk_norm_full": True},
    {"norm_placement": "both", "qk_norm": True, "activation": "geglu", "norm": "rmsnorm", "norm_offset": 1.0},
    {"parallel_residual": True, "rotary_fraction": 0.5, "norm": "layernorm"},
    {"positions": "learned", "attention_scale": 0.1, "head_dim": 32},
]
KIND_VARIANTS = [
    {"attention": ("window",)},
    {"attention": ("sparse",), "norm": "layernorm"},
    {"attention": ("sparse",), "kv_heads": 2, "qk_norm": True},
    {"attention": ("pooled",), "pooling": "conv"},
    {"attention": ("lsh",), "norm": "layernorm"},
    {"attention": ("linear",)},
    {"attention": ("linear",), "feature_map": "learned", "norm": "layernorm"},
    {"experts": 4, "d_ff": 256},
    {"activation": "swiglu"},
    *PARTS,
    {"attention": ("sparse", "full"), "experts": 4, "d_ff": 512, "experts_shared": 1, "norm": "layernorm"},
]


@pytest.mark.parametrize("changes", KIND_VARIANTS, ids=str)
def test_activations_of_every_kind_are_what_autograd_keeps(changes: dict[str, object]) -> None:
    config = dataclasses.replace(SMALL, context=512, window=64, stride=64, pool=32, lsh_span=16, **changes)  # type: ignore[arg-type]
    assert 2 * 512 * activation_bytes_per_token(config) == pytest.approx(kept_bytes(config, 2, False), rel=0.1)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_activations_are_what_autograd_keeps(changes: dict[str, object], half: bool) -> None:
    config = dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]
    assert 5 * 64 * activation_bytes_per_token(config, half) == pytest.approx(kept_bytes(config, 5, half), rel=0.03)


@pytest.mark.parametrize("config", [*DIFFERING_CONFIGS, *LACKING_CONFIGS], ids=lambda c: f"{c.recompute}-{c.residual}")
def test_activations_of_layers_that_differ_are_what_autograd_keeps(config: GPTConfig) -> None:
    config = dataclasses.replace(config, context=512)
    ours = activation_bytes_per_token(config)
    if config.recompute or config.residual == "reversible":  # what the last norm keeps is free when blocks run again
        ours += 3 * 4 * config.d_model + 4
    assert 2 * 512 * ours == pytest.approx(kept_bytes(config, 2, False), rel=0.1)


def peak_bytes(config: GPTConfig, rows: int) -> int:
    """The most that the library's tensors hold at once in a step, above weights and their gradients: the allocator's
    own account."""
    model = GPT(config)
    model.initialise(1)
    tokens = torch.randint(0, config.vocab_size, (rows, config.context))
    model.loss(tokens[:, :8], tokens[:, :8]).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model.loss(tokens, tokens).backward()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "rmsnorm", "activation": "swiglu"},
        {"attention": ("sparse",)},
        {"attention": ("lsh",)},
        {"attention": (("linear"),)},
        {"experts": 4, "d_ff": 512},
        {"recompute": True},
        {"residual": "reversible"},
        {"attention": ("sparse",), "recompute": True},
        {"attention": ("sparse",), "recompute": True, "residual": "reversible"},
        {"attention": ("sparse",), "recompute": True, "residual": "reversible", "qk_norm": True},
        {"attention": ("linear",), "recompute": True},
        {"parallel_residual": True},
        {"parallel_residual": True, "recompute": True},
        {"norm_placement": "both", "norm": "rmsnorm", "activation": "geglu", "recompute": True},
        {"norm_placement": "post", "qk_norm_full": True, "residual": "reversible"},
    ],
    ids=str,
)
def test_activation_bytes_are_the_measured_peaks(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmforge.model.recompute.TOKENS", 256)
    monkeypatch.setattr("lmforge.model.linear_attention.PIECE", 4)
    config = dataclasses.replace(
        SMALL, context=1024, layers=6, **({"d_ff": 256, "norm": "layernorm", "lsh_span": 32} | changes)
    )  # type: ignore[arg-type]
    ours = (
        4 * 1024 * (activation_bytes_per_token(config) + working_bytes_per_token(config))
        + training_bytes(config, 4096)["logits"]
    )
    assert ours == pytest.approx(peak_bytes(config, 4), rel=0.1)


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, biases=True, kv_heads=2, d_ff=100)], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_bytes_follow_the_optimizers(optimizer: str, config: GPTConfig) -> None:
    from lmforge.recipe import Train
    from lmforge.train.optim import build_optimizers

    model = GPT(config)
    tokens = torch.zeros(1, 64, dtype=torch.long)
    model.loss(tokens, tokens).backward()
    optimizers = build_optimizers(model, Train(optimizer=optimizer))  # type: ignore[arg-type]
    for each in optimizers.values():
        each.step()
    kept = sum(
        t.nbytes for each in optimizers.values() for state in each.state.values() for t in state.values() if t.ndim
    )
    ours = training_bytes(config, 64, optimizer)
    assert ours["optimizer"] == pytest.approx(kept, rel=1e-6)
    assert ours["weights"] == ours["gradients"] == sum(p.nbytes for p in model.parameters())


def filled(config: GPTConfig, rows: int, capacity: int) -> KVCache:
    cache = KVCache(rows, capacity, torch.device("cpu"))
    with torch.no_grad():
        GPT(config)(torch.ones(rows, 3, dtype=torch.long), cache)
    return cache


def test_the_cache_is_the_caches() -> None:
    assert decoding_bytes(SMALL, 3, 20)["cache"] == pytest.approx(filled(SMALL, 3, 20).nbytes, rel=0.06)
    for config in (*KIND_CONFIGS, *DIFFERING_CONFIGS, *LACKING_CONFIGS):
        assert decoding_bytes(config, 3, 900)["cache"] == pytest.approx(filled(config, 3, 900).nbytes, rel=0.01)
