"""The shape of a network goes to JSON and back; what does not fit together is refused in one line that names the
key."""

from __future__ import annotations

import json

import pytest

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig, LayerShape, network_of
from lmforge.recipe import Model, parse_recipe

GOOD = {"vocab_size": 50, "context": 24, "layers": 4, "d_model": 16, "heads": 2, "kv_heads": 2, "d_ff": 32, "pool": 8}


def test_json_gives_the_config_back() -> None:
    config = GPTConfig(**{**GOOD, "attention": ("sparse", "full")})
    assert GPTConfig(**json.loads(json.dumps(config.to_json()))) == config
    assert [config.kind_of(layer) for layer in range(4)] == ["sparse", "full", "sparse", "full"]
    assert GPTConfig(**{**GOOD, "attention": "window"}).attention == ("window",)
    assert not config.layer_shapes
    assert config.shape_of(2) == LayerShape(heads=2, kv_heads=2, d_ff=32)


def test_parts_that_are_not_set_follow_from_others() -> None:
    plain, biased = GPTConfig(**GOOD), GPTConfig(**{**GOOD, "biases": True, "qkv_biases": False})
    assert (plain.head_width, plain.rotary_width, plain.gated) == (8, 8, False)
    assert (biased.has_qkv_biases, biased.has_out_biases, biased.has_norm_biases) == (False, True, True)
    wide = GPTConfig(
        **{**GOOD, "heads": 3, "kv_heads": 3, "head_dim": 12, "rotary_fraction": 0.5, "activation": "geglu"}
    )
    assert (wide.head_width, wide.rotary_width, wide.gated) == (12, 6, True)
    assert GPTConfig(**{**GOOD, "rope_scaling": "linear", "rope_trained": 6}).rope_stretch == 4
    assert GPTConfig(**{**GOOD, "rope_scaling": "linear", "rope_factor": 2.0}).rope_stretch == 2


def test_layers_that_differ_go_to_json_and_back() -> None:
    shapes = tuple(LayerShape(heads, heads, 8 * heads, experts=heads % 2 * 4, qkv_rank=3) for heads in range(4))
    config = GPTConfig(**{**GOOD, "layer_shapes": shapes})
    again = GPTConfig(**json.loads(json.dumps(config.to_json())))
    assert again == config
    assert hash(again) == hash(config)
    assert again.shape_of(3) == shapes[3]
    assert again.has_experts
    assert not GPTConfig(**GOOD).has_experts
    assert GPTConfig(**GOOD, experts=4).has_experts


@pytest.mark.parametrize(("shape", "words"), [
    ({"heads": 3, "kv_heads": 2}, "layer 1: kv_heads 2 do not divide heads 3"),
    ({"heads": 2, "kv_heads": 0}, "layer 1: kv_heads 0 do not divide heads 2"),
    ({"heads": -1}, "layer 1: .* below 0"),
    ({"up_rank": -1}, "layer 1: .* below 0"),
    ({"experts": 3}, "layer 1: 3 experts do not divide d_ff 32"),
    ({"experts": 1}, "layer 1: 2 experts are active of 1"),
])  # fmt: skip
def test_a_layer_that_does_not_fit_is_refused_by_its_number(shape: dict[str, int], words: str) -> None:
    good = {"heads": 2, "kv_heads": 2, "d_ff": 32}
    with pytest.raises(InputError, match=rf"^model\.layer_shapes: {words}"):
        GPTConfig(**{**GOOD, "layer_shapes": (good, good | shape, good, good)})
    with pytest.raises(InputError, match=r"layer_shapes: 3 of them for 4 layers"):
        GPTConfig(**{**GOOD, "layer_shapes": (good, good, good)})
    grouped = good | {"kv_heads": 1}
    with pytest.raises(InputError, match=r"layer 2: lsh uses queries as keys"):
        GPTConfig(**{**GOOD, "attention": ("lsh", "full"), "layer_shapes": (good, good, grouped, good)})


@pytest.mark.parametrize(("changes", "words"), [
    ({"attention": ("full", "window", "lsh")}, "a pattern of 3 kinds does not fit 4 layers"),
    ({"attention": ("fulll",)}, "'fulll'.*is not a kind"),
    ({"head_dim": 7}, "even head width"),
    ({"rotary_fraction": 0.4}, "of which 3 channels turn"),
    ({"rotary_fraction": 1.5}, "rotary_fraction: 1.5"),
    ({"norm_placement": "within"}, "norm_placement: 'within'"),
    ({"parallel_residual": True, "residual": "reversible"}, "residual: reversible blocks feed"),
    ({"qk_norm": True, "qk_norm_full": True}, "qk_norm_full: .* give one"),
    ({"attention": ("linear",), "attention_scale": 0.1}, "attention_scale: linear attention"),
    ({"attention_scale": -1.0}, "attention_scale: -1.0"),
    ({"rope_scaling": "llama3", "rope_factor": 8.0}, "llama3 needs the context"),
    ({"rope_scaling": "llama3", "rope_trained": 12, "rope_low": 4.0}, "rope_high: 4.0 is not above rope_low 4.0"),
    ({"rope_divisors": (1.0, 2.0)}, "rope_divisors: 2 of them for 4 pairs"),
    ({"heads": 3, "kv_heads": 3}, "3 heads do not divide d_model 16"),
    ({"kv_heads": 3}, "kv_heads: 3 do not divide heads 2"),
    ({"heads": 16, "kv_heads": 16}, "even head width"),
    ({"attention": ("lsh",), "kv_heads": 1}, "as many kv_heads as heads"),
    ({"attention": ("pooled",), "pool": 25}, "a block of 25 tokens is larger than the context of 24"),
    ({"rope_trained": 12}, "24 tokens are beyond the 12 that RoPE was trained at"),
    ({"rope_scaling": "yarn"}, "rope_trained: 0 with a context of 24"),
    ({"rope_scaling": "ntk", "rope_trained": 12, "positions": "learned"}, "positions are 'learned'"),
    ({"image_size": 10, "image_patch": 3}, "patches of 3 do not divide images of 10"),
    ({"image_size": 10, "image_patch": 2}, "an image is 25 patches, and the context 24"),
    ({"experts": 5}, "5 experts do not divide d_ff 32"),
    ({"experts": 4, "experts_active": 5}, "5 of 4 experts"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=f"^model\\..*{words}"):
        GPTConfig(**{**GOOD, **changes})


def test_a_recipe_makes_a_network_and_its_defaults_are_the_networks() -> None:
    recipe = parse_recipe(
        {"tokens": {"context": 64}, "model": {"layers": 4, "attention": ["sparse", "full"], "pool": 16, "experts": 4}}
    )
    config = network_of(recipe, 300)
    assert (config.attention, config.kv_heads, config.d_ff, config.experts, config.context) == (
        ("sparse", "full"),
        4,
        1024,
        4,
        64,
    )
    for name, field in Model.model_fields.items():
        if name == "base":  # where weights come from, no part of the shape
            continue
        ours = GPTConfig.__dataclass_fields__[name].default
        if name not in ("layers", "d_model", "heads", "kv_heads", "d_ff", "attention"):
            assert ours == field.default, name
