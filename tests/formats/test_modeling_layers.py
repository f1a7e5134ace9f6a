"""The layers of the modelling file against the network: every kind, padded or not."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.formats import modeling_layers
from lmforge.formats.modeling_layers import MASKABLE, Shape
from lmforge.model.config import KINDS, GPTConfig
from tests.formats.exporting import GPT2, GPU, LAPTOP, LLAMA, SMALL, network

modeling = pytest.importorskip("lmforge.formats.modeling_lmforge")
# what a network that is only asked does not need
TRAINING = {
    "recompute",
    "z_loss",
    "ahead",
    "image_size",
    "image_patch",
    "image_channels",
    "image_stem",
    "vocab_size",
    "tied",
}
SHAPES: dict[str, dict[str, Any]] = {
    "default": {},
    "laptop": LAPTOP,
    "gpu": GPU,
    "llama": LLAMA,
    "gpt2": GPT2,
    "n-grams, windows": {"ngram_rows": 50, "attention": ("window", "full"), "window": 5},
    "strided": {"attention": ("strided",), "window": 4, "stride": 6},
    "pooled": {"attention": ("pooled",), "pool": 4},
    "sparse, max": {"attention": ("sparse",), "pool": 4, "window": 6, "stride": 8, "pooling": "max"},
    "sparse, conv": {"attention": ("sparse",), "pool": 8, "window": 6, "stride": 16, "pooling": "conv"},
    "lsh": {"attention": ("lsh",), "kv_heads": 4, "lsh_span": 8, "qk_norm": True},
    "lsh, many buckets": {"attention": ("lsh",), "kv_heads": 4, "lsh_span": 2, "context": 400},
    "linear": {"attention": ("linear", "full")},
    "linear, learned": {"attention": ("linear",), "feature_map": "learned"},
    "experts": {"experts": 4, "experts_shared": 1},
    "experts, loss": {"experts": 4, "balance": "loss", "activation": "swiglu"},
    "reversible": {"residual": "reversible"},
    "yarn": {"tied": False, "rope_scaling": "yarn", "rope_trained": 16},
    "ntk": {"rope_scaling": "ntk", "rope_trained": 16},
    "linear scaling": {"rope_scaling": "linear", "rope_trained": 16},
    "llama3": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_trained": 16, "qkv_biases": True},
    "longrope": {"rope_divisors": (1.0, 2.0, 1.5, 3.0), "rope_magnitude": 1.2},
    "no positions": {"positions": "none"},
    "parallel": {"parallel_residual": True, "rotary_fraction": 0.5, "norm": "layernorm", "biases": True},
    "post norms": {"norm_placement": "post", "qk_norm_full": True, "activation": "swiglu"},
    "gemma": {
        "norm_placement": "both",
        "norm_offset": 1.0,
        "qk_norm": True,
        "activation": "geglu",
        "embedding_scale": 5.6,
        "attention_scale": 0.2,
        "head_dim": 16,
        "attention": ("window", "full"),
        "window": 9,
        "rope_local_base": 500.0,
        "rope_scaling": "linear",
        "rope_factor": 4.0,
    },
    "shapes": {
        "layer_shapes": (
            {"heads": 2, "kv_heads": 1, "d_ff": 0, "qkv_rank": 5, "out_rank": 3},
            {"heads": 0, "kv_heads": 0, "d_ff": 24, "up_rank": 4, "down_rank": 6},
        )
    },
}


def both(changes: dict[str, Any]) -> tuple[Any, Any]:
    ours = network(**changes)
    theirs = modeling.LmforgeForCausalLM(modeling.LmforgeConfig(architecture=ours.config.to_json())).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_network_and_padding_changes_none(name: str) -> None:
    ours, theirs = both(SHAPES[name])
    tokens = torch.randint(280, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = ours(tokens)
    assert torch.allclose(theirs(tokens).logits, logits, atol=2e-5)
    padded, mask = torch.zeros(2, 47, dtype=torch.long), torch.zeros(2, 47, dtype=torch.long)
    padded[0, 7:], mask[0, 7:], padded[1, :40], mask[1, :40] = tokens[0], 1, tokens[1], 1
    result = theirs(padded, attention_mask=mask).logits
    assert torch.allclose(torch.stack((result[0, 7:], result[1, :40])), logits, atol=2e-5)


def test_every_kind_of_attention_is_here() -> None:
    tried = {kind for changes in SHAPES.values() for kind in changes.get("attention", ("full",))}
    assert tried == set(KINDS)
    assert tried > MASKABLE


def test_every_field_of_the_shape_is_read() -> None:
    """A field that is new in the network has to come here, too."""
    source = "".join(Path(file).read_text() for file in (str(modeling_layers.__file__), str(modeling.__file__)))
    words = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    words |= {str(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert {field.name for field in dataclasses.fields(GPTConfig)} - words - TRAINING == set()


def test_a_field_that_is_not_there_is_named() -> None:
    shape = Shape(GPTConfig(**SMALL).to_json())
    with pytest.raises(AttributeError, match="architecture has no depth"):
        _ = shape.depth
