"""What is cut out of a network computes what the network computes where the rest gives nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.masks import MaskedLinear, mask_linear
from lmforge.compress.quantize import quantize
from lmforge.compress.structure import KeptLayer, cut, heads_rows, whole_layer
from lmforge.errors import InputError
from lmforge.model.gpt import GPT, LayerShape
from tests.compress.conftest import relative, small_model, tokens

VARIANTS: list[dict[str, object]] = [
    {},
    {"activation": "swiglu", "biases": True, "norm": "layernorm"},
    {"kv_heads": 4, "attention": ("full", "linear"), "feature_map": "learned"},
    {"attention": ("pooled",), "pooling": "conv", "pool": 4},
    {"attention": ("lsh",), "kv_heads": 4, "lsh_span": 8},
    {"experts": 4, "experts_shared": 1},
    {"layer_shapes": (LayerShape(4, 2, 64, 0, 8, 8, 8, 8), LayerShape(2, 1, 96)), "biases": True},
    {"positions": "learned", "tied": False},
    {"qk_norm": False, "qk_norm_full": True, "norm_placement": "both", "activation": "geglu", "head_dim": 24},
    {"parallel_residual": True, "qkv_biases": True, "norm_placement": "pre", "norm_offset": 1.0},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@torch.no_grad()
def test_all_of_it_is_the_network_itself(changes: dict[str, object]) -> None:
    model = small_model(**changes)
    layers = [whole_layer(model.config, layer) for layer in range(2)]
    same = cut(model, layers)
    assert same.config == model.config
    assert torch.equal(same(tokens()), model(tokens()))


def silenced(model: GPT, kept: KeptLayer) -> None:
    """Zeros where the parts that `kept` leaves out of a layer write into the residual stream."""
    config, shape = model.config, model.config.shape_of(kept.layer)
    block = model.blocks[kept.layer]
    assert block.attention is not None
    out = block.attention.out if isinstance(block.attention.out, torch.nn.Linear) else block.attention.out[0]
    groups = out.weight.view(len(out.weight), shape.kv_heads, -1)
    groups[:, [group for group in range(shape.kv_heads) if group not in kept.groups]] = 0
    networks = block.ff.experts if shape.experts else [block.ff]  # type: ignore[union-attr,list-item]
    for number, network in enumerate(networks):  # type: ignore[arg-type]
        down = network.down if isinstance(network.down, torch.nn.Linear) else network.down[0]
        units = kept.units[number]
        down.weight[:, [unit for unit in range(down.in_features) if unit not in units]] = 0
    assert config.layers == 2


@pytest.mark.parametrize("changes", [each for each in VARIANTS if not {"experts", "qk_norm_full"} & set(each)], ids=str)
@torch.no_grad()
def test_parts_that_gave_nothing_can_go(changes: dict[str, object]) -> None:
    model = small_model(**changes)
    layers = []
    for layer in range(2):
        whole = whole_layer(model.config, layer)
        units = tuple(tuple(each[::2]) for each in whole.units)
        layers.append(dataclasses.replace(whole, groups=whole.groups[-1:], units=units))
        silenced(model, layers[-1])
    smaller = cut(model, layers)
    assert relative(smaller(tokens()), model(tokens())) < 1e-5
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_experts_and_layers_go() -> None:
    model = small_model(experts=4, experts_active=1)
    block = model.blocks[0]
    kept = dataclasses.replace(whole_layer(model.config, 0), experts=(1, 3), units=(tuple(range(0, 32, 2)),) * 2)
    smaller = cut(model, [kept])
    assert smaller.config.layers == 1
    assert smaller.config.shape_of(0) == LayerShape(4, 2, 32, 2)
    assert torch.equal(smaller.blocks[0].ff.experts[1].down.weight, block.ff.experts[3].down.weight[:, ::2])  # type: ignore[union-attr]
    assert torch.equal(smaller.blocks[0].ff.router.weight, block.ff.router.weight[[1, 3]])  # type: ignore[union-attr]
    assert smaller(tokens()).isfinite().all()


@pytest.mark.parametrize("changes", VARIANTS[:3] + VARIANTS[5:], ids=str)
@torch.no_grad()
def test_channels_of_the_residual_stream(changes: dict[str, object]) -> None:
    """A network in which the other half of the channels is always 0 is, but for the norms' scale, the half of it."""
    model = small_model(**changes)
    layers = [whole_layer(model.config, layer) for layer in range(2)]
    half = cut(model, layers, range(0, 64, 2))
    assert half.config.d_model == 32
    assert half.config.head_width == model.config.head_width
    assert half(tokens()).shape == model(tokens()).shape
    assert torch.equal(half.embed.weight, model.embed.weight[:, ::2])  # type: ignore[union-attr]
    assert cut(model, layers, range(41))(tokens()).isfinite().all()


@torch.no_grad()
def test_masks_go_along_and_integers_are_refused() -> None:
    model = small_model()
    mask_linear(model, "blocks.1.ff.up", torch.rand(128, 64) > 0.5)
    smaller = cut(model, [dataclasses.replace(whole_layer(model.config, 1), units=(tuple(range(10, 50)),))])
    layer = smaller.get_submodule("blocks.0.ff.up")
    assert isinstance(layer, MaskedLinear)
    assert torch.equal(layer.mask, model.get_submodule("blocks.1.ff.up").mask[10:50])
    integers, _ = quantize(small_model())
    with pytest.raises(InputError, match="before it is quantised, and embed is; put the step before"):
        cut(integers, [whole_layer(integers.config, 0)])
    refuse_frozen(smaller, "nothing is refused", "")


def test_rows_of_heads() -> None:
    shape = LayerShape(4, 2, 8)
    assert heads_rows(shape, (1,), 2, False).tolist() == [4, 5, 6, 7, 10, 11, 14, 15]
    assert heads_rows(LayerShape(2, 2, 8), (0,), 2, True).tolist() == [0, 1, 4, 5]
