"""The formulas against the network itself: its parameters, torch's own count of operations."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmforge.model.config import KINDS, network_of
from lmforge.model.experts import Experts
from lmforge.model.gpt import GPT, Block, GPTConfig, KVCache, LayerShape
from lmforge.model.kernels import banded_numba
from lmforge.model.measure import macs_per_token
from lmforge.plan.cost import (
    active_parameters,
    decode_flops_per_token,
    flops_per_token,
    parameters,
    training_flops_per_token,
)
from lmforge.recipe import load_recipe

SMALL = GPTConfig(vocab_size=300, context=64, layers=2, d_model=64, heads=4, kv_heads=4, d_ff=192)


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    width = heads * 2 * draw(st.integers(2, 8))
    normed = draw(st.sampled_from(["", "each", "full"]))
    return GPTConfig(
        vocab_size=draw(st.integers(257, 400)),
        context=draw(st.sampled_from([8, 32, 48])),
        layers=draw(st.integers(1, 3)),
        d_model=width,
        heads=heads,
        kv_heads=kv_heads,
        d_ff=draw(st.integers(1, 200)),
        activation=draw(st.sampled_from(["relu", "relu2", "gelu"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        positions=draw(st.sampled_from(["rope", "learned"])),
        biases=draw(st.booleans()),
        qkv_biases=draw(st.sampled_from([None, True, False])),
        out_biases=draw(st.sampled_from([None, True, False])),
        norm_biases=draw(st.sampled_from([None, True, False])),
        qk_norm=normed == "each",
        qk_norm_full=normed == "full",
        norm_placement=draw(st.sampled_from(["pre", "post", "both"])),
        parallel_residual=draw(st.booleans()),
        head_dim=draw(st.sampled_from([0, 6])),
        ngram_rows=draw(st.sampled_from([0, 50])),
    )


@st.composite
def any_configs(draw: st.DrawFn) -> GPTConfig:
    config, kind = draw(configs()), draw(st.sampled_from(KINDS))
    experts = draw(st.sampled_from([0, 4]))
    return dataclasses.replace(
        config,
        attention=(kind,),
        kv_heads=config.heads if kind == "lsh" else config.kv_heads,
        pool=draw(st.integers(1, 8)),
        pooling=draw(st.sampled_from(["mean", "max", "conv"])),
        feature_map=draw(st.sampled_from(["elu", "learned"])),
        lsh_span=draw(st.integers(1, 9)),
        tied=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "swiglu", "geglu"])),
        ahead=draw(st.integers(0, 2)),
        experts=experts,
        d_ff=4 * config.d_ff,
        experts_shared=draw(st.integers(0, 1)),
        balance=draw(st.sampled_from(["bias", "loss"])),
        image_size=4 if config.context > 4 else 0,
        image_patch=2,
    )


@st.composite
def differing_configs(draw: st.DrawFn) -> GPTConfig:
    config, shapes, ranks = draw(any_configs()), [], st.sampled_from([0, 0, 1, 5])
    for _ in range(config.layers):
        kv_heads, experts = draw(st.integers(0, 3)), draw(st.sampled_from([0, 2, 3]))
        groups = 1 if config.attention == ("lsh",) else draw(st.integers(1, 2))
        units = draw(st.integers(0, 9)) * max(1, experts)
        shapes.append(LayerShape(groups * kv_heads, kv_heads, units, experts, *(draw(ranks) for _ in range(4))))
    return dataclasses.replace(config, layer_shapes=tuple(shapes))


@settings(deadline=None)
@given(st.one_of(configs(), any_configs(), differing_configs()))
def test_parameters_are_the_networks(config: GPTConfig) -> None:
    assert sum(parameters(config).values()) == sum(p.numel() for p in GPT(config).parameters())


@settings(deadline=None)
@given(st.one_of(configs(), any_configs(), differing_configs()))
def test_products_with_weights_are_what_the_modules_say(config: GPTConfig) -> None:
    model = GPT(config)
    maps = sum(block.attention.mixer.macs_per_token() for block in model.blocks if linear(block))
    products = {name: flops for name, flops in flops_per_token(config, 8).items() if name != "attention"}
    assert sum(products.values()) == 2 * (macs_per_token(model) - maps)


def linear(block: Block) -> bool:
    return block.attention is not None and block.attention.config.attention == ("linear",)


@settings(deadline=None)
@given(st.one_of(any_configs(), differing_configs()))
def test_active_parameters_are_those_that_a_token_meets(config: GPTConfig) -> None:
    model = GPT(config)
    met = {name for name, _ in model.named_parameters() if not name.startswith(("embed", "ahead", "patches"))}
    for number, block in enumerate(model.blocks):
        if isinstance(block.ff, Experts):
            begins = f"blocks.{number}.ff.experts."
            idle = tuple(f"{begins}{expert}." for expert in range(config.experts_active, len(block.ff.experts)))
            met = {name for name in met if not name.startswith(idle)}
    tables = ("ngrams.", "learned_positions.")
    parameters_met = sum(model.get_parameter(name).numel() for name in met if not name.startswith(tables))
    rows = sum(isinstance(part, torch.nn.Embedding) for part in model.modules())
    assert active_parameters(config) == parameters_met + config.d_model * (rows - config.tied) + (
        config.vocab_size * config.d_model if config.tied else 0
    )


@settings(deadline=None, max_examples=20)
@given(configs())
def test_flops_are_what_torch_counts(config: GPTConfig) -> None:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        GPT(config)(torch.zeros(2, config.context, dtype=torch.long))
    ours = flops_per_token(config, config.context)
    # Torch counts the whole T×T product, of which causal attention needs (T + 1)/(2T).
    ours["attention"] *= 2 * config.context / (config.context + 1)
    assert 2 * config.context * sum(ours.values()) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def kernel_flops(q: torch.Size, k: torch.Size, *_: object, causal: bool) -> int:
    """Of the CPU's attention kernel, which torch does not count by itself: 2 products over the pairs that meet."""
    pairs = q[2] * (q[2] + 1) // 2 if causal else q[2] * k[2]
    return 4 * q[0] * q[1] * q[3] * pairs


def counted() -> FlopCounterMode:
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, dropout=0.0, causal=False, *_, **__: (
                kernel_flops(q, k, causal=causal)
            ),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, o, lse, p, causal, *_, **__: (
                kernel_flops(q, k, causal=causal) * 5 // 2
            ),
        },
    )


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Operations of each product that the compiled loops of the band make: the loops run as plain Python."""
    made, product = [], banded_numba._product

    def counting(room: object, m: int, n: int, k: int, *rest: object) -> None:
        made.append(2 * m * n * k)
        product(room, m, n, k, *rest)

    monkeypatch.setattr(banded_numba, "_product", counting)
    for name in ("_shares", "forward", "backward"):
        monkeypatch.setattr(banded_numba, name, getattr(banded_numba, name).py_func)
    return made


KIND_CONFIGS = [
    dataclasses.replace(
        SMALL,
        context=1500,
        attention=(kind,),
        window=100,
        stride=64,
        pool=32,
        lsh_span=16,
        feature_map=features,
        activation=activation,
        experts=experts,
        d_ff=256,
        **more,
    )
    for kind, features, activation, experts, more in [
        ("full", "elu", "relu", 0, {}),
        ("window", "elu", "swiglu", 0, {}),
        ("strided", "elu", "relu", 0, {}),
        ("pooled", "elu", "relu", 4, {}),
        ("sparse", "elu", "relu", 0, {"recompute": True}),
        ("lsh", "elu", "relu", 0, {}),
        ("linear", "elu", "relu", 0, {}),
        ("linear", "learned", "relu", 0, {"ahead": 1}),
        ("full", "elu", "relu", 0, {"recompute": True}),
        ("sparse", "elu", "relu", 0, {"residual": "reversible"}),
        ("lsh", "elu", "relu", 0, {"residual": "reversible"}),
        (
            "sparse",
            "elu",
            "swiglu",
            0,
            {"residual": "reversible", "recompute": True, "d_model": 32, "heads": 2, "kv_heads": 2},
        ),
        ("sparse", "elu", "relu", 0, {"recompute": True, "d_model": 32, "heads": 2, "kv_heads": 2, "biases": True}),
        ("full", "elu", "geglu", 0, {"parallel_residual": True, "rotary_fraction": 0.5, "head_dim": 24}),
        ("window", "elu", "geglu", 0, {"parallel_residual": True, "recompute": True, "qk_norm_full": True}),
        ("full", "elu", "swiglu", 0, {"norm_placement": "both", "residual": "reversible"}),
        ("window", "elu", "swiglu", 0, {"norm_placement": "post", "recompute": True, "attention_scale": 0.1}),
    ]
]


DIFFERING_CONFIGS = [
    dataclasses.replace(
        SMALL,
        context=1500,
        layers=3,
        attention=("full", "sparse", "linear"),
        window=100,
        stride=64,
        pool=32,
        layer_shapes=(
            LayerShape(2, 2, 96, up_rank=8, out_rank=8),
            LayerShape(3, 1, 200, qkv_rank=16, down_rank=24),
            LayerShape(4, 2, 64, experts=4),
        ),
        **mode,
    )
    for mode in ({}, {"recompute": True}, {"residual": "reversible"})
]
LACKING_CONFIGS = [
    dataclasses.replace(
        SMALL,
        context=1500,
        layers=3,
        layer_shapes=(LayerShape(2, 2, 0), LayerShape(0, 0, 200, down_rank=24), LayerShape(4, 4, 64)),
        **mode,
    )
    for mode in ({}, {"recompute": True}, {"residual": "reversible"})
]


@pytest.mark.parametrize(
    "config",
    [*KIND_CONFIGS, *DIFFERING_CONFIGS, *LACKING_CONFIGS],
    ids=lambda c: f"{c.attention[0]}-{c.feature_map}-{c.recompute}-{c.residual}",
)
def test_every_kind_is_what_torch_counts(config: GPTConfig, products: list[int]) -> None:
    model, length = GPT(config), 1400
    tokens = torch.arange(length)[None] % 300
    with torch.no_grad(), counted() as counter:
        model(tokens)
    assert length * sum(flops_per_token(config, length).values()) == pytest.approx(
        counter.get_total_flops() + sum(products), rel=0.01
    )
    products.clear()
    with counted() as counter:
        model.loss(tokens, tokens).backward()
    assert length * training_flops_per_token(config, length) == pytest.approx(
        counter.get_total_flops() + sum(products), rel=0.01
    )
    with torch.no_grad():
        cache = KVCache(2, config.context, torch.device("cpu"))
        model(tokens.expand(2, -1), cache)
        products.clear()
        with counted() as counter:
            model(tokens[:, :1].expand(2, -1), cache)
    assert 2 * sum(decode_flops_per_token(config, length).values()) == pytest.approx(
        counter.get_total_flops() + sum(products), rel=0.01
    )


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
        cache = KVCache(3, 64, torch.device("cpu"))
        model(torch.ones(3, 40, dtype=torch.long), cache)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(torch.ones(3, 1, dtype=torch.long), cache)
    assert 3 * sum(decode_flops_per_token(SMALL, 40).values()) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_what_is_not_looked_up_is_not_active() -> None:
    assert active_parameters(SMALL) == sum(parameters(SMALL).values())
    config = dataclasses.replace(SMALL, ngram_rows=1000, positions="learned")
    assert active_parameters(config) == active_parameters(SMALL) + 3 * 64


def test_the_1_2_trillion_target() -> None:
    """design.md section 2: 300·(4·18144² + 2·18144·65536) + 5·10⁶·18144 parameters; 6·N·D is 9.35·10²⁴ for 1.3·10¹²
    tokens."""
    config = GPTConfig(
        vocab_size=5_000_000, context=30_000, layers=300, d_model=18_144, heads=216, kv_heads=216, d_ff=65_536
    )
    counted = parameters(config)
    norms = counted.pop("norms")
    assert sum(counted.values()) == 300 * (4 * 18_144**2 + 2 * 18_144 * 65_536) + 5_000_000 * 18_144
    assert norms < 2e7
    products = {name: flops for name, flops in flops_per_token(config, 1).items() if name != "attention"}
    assert 3 * sum(products.values()) * 1.3e12 == pytest.approx(9.35e24, rel=0.01)


@pytest.mark.parametrize("overrides", [[], ["model.experts=16"]])
def test_the_target_recipe_is_built_in_seconds_and_its_layers_run_at_reduced_width(overrides: list[str]) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "gpt4.toml", overrides)
    config = network_of(recipe, recipe.tokens.vocab_size)
    started = time.monotonic()
    with torch.device("meta"):
        model = GPT(config)
    assert time.monotonic() - started < 60
    assert (
        sum(p.numel() for p in model.parameters())
        == sum(parameters(config).values())
        == pytest.approx(1.199e12, rel=1e-3)
    )
    if overrides:
        assert active_parameters(config) == pytest.approx(
            5e6 * 18_144 + 300 * (4 * 18_144**2 + 2 * 18_144 * 8192), rel=1e-3
        )
    narrow = dataclasses.replace(config, d_model=216 * 2, d_ff=512, vocab_size=300, layers=1)
    one = GPT(narrow)
    one.initialise(1)
    tokens = torch.arange(700)[None] % 300
    one.loss(tokens, tokens).backward()
    assert all(torch.isfinite(p.grad).all() for p in one.parameters() if p.grad is not None)
