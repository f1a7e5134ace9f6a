"""Families whose feed-forward part is one matrix each way, with RoPE: what our default recipes are.

    Arcee (Atkins et al. 2025, AFM)        RMSNorm
    Apertus (Apertus project 2025)         RMSNorm, norms of queries and keys
    Persimmon (Elsen et al. 2023)          LayerNorm, norms of queries and keys or none, biases

Apertus' own activation, xIELU, is not ours: its published checkpoints are refused, naming hidden_act. Persimmon's norms
of queries and keys have biases, which ours have not: it is written, with zeros there, and not read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmforge.formats.families import FAMILIES, Family
from lmforge.formats.families_gpt import ACTIVATIONS
from lmforge.formats.families_keys import Always, Key, Only, Rule, Same
from lmforge.formats.families_rows import ONE_HEAD, QKV, QKV_BY_HEAD, Row
from lmforge.formats.families_rules import Heads, Rope, stretching
from lmforge.model.config import GPTConfig


@dataclasses.dataclass(frozen=True)
class StatedRope(Rope):
    """RoPE that config.json has to state, as `transformers` 5 writes it: left out, it is one of published checkpoints
    that is stretched."""

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `families_keys.Rule`."""
        stretched = stretching(config) or {"rope_type": "default"}
        return {"rope_parameters": {**stretched, "rope_theta": config.rope_base}}


SIZES: tuple[Rule, ...] = (
    Key("d_model", "hidden_size"),
    Key("layers", "num_hidden_layers"),
    Key("d_ff", "intermediate_size"),
    Key("tied", "tie_word_embeddings", False),
)
RMS: tuple[Rule, ...] = (
    *SIZES,
    Heads(),
    StatedRope(),
    Key("norm_eps", "rms_norm_eps", 1e-5),
    Always({"norm": "rmsnorm", "positions": "rope"}),
    Same(("qkv_biases", "out_biases"), "attention_bias", False),
)
TABLES = (Row("embed", ("model.embed_tokens",)), Row("norm", ("model.norm",)), Row("head", ("lm_head",)))
MATRICES = (
    Row("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), QKV),
    Row("attention.out", ("self_attn.o_proj",)),
    Row("ff.up", ("mlp.up_proj",)),
    Row("ff.down", ("mlp.down_proj",)),
)
COMMON: dict[str, Any] = {"layer": "model.layers.{}.", "rows": TABLES, "prefixes": ("model.", "")}

FAMILIES.register(
    "arcee",
    Family(
        "arcee",
        "ArceeForCausalLM",
        (*RMS, Key("activation", "hidden_act", "relu2", ACTIVATIONS), Key("biases", "mlp_bias", False)),
        layer_rows=(
            Row("attention_norm", ("input_layernorm",)),
            Row("ff_norm", ("post_attention_layernorm",)),
            *MATRICES,
        ),
        **COMMON,
    ),
)
FAMILIES.register(
    "apertus",
    Family(
        "apertus",
        "ApertusForCausalLM",
        (*RMS, Key("activation", "hidden_act", "xielu", ACTIVATIONS), Always({"qk_norm": True})),
        layer_rows=(
            Row("attention_norm", ("attention_layernorm",)),
            Row("ff_norm", ("feedforward_layernorm",)),
            Row("attention.q_norm", ("self_attn.q_norm",), ONE_HEAD),
            Row("attention.k_norm", ("self_attn.k_norm",), ONE_HEAD),
            *MATRICES,
        ),
        **COMMON,
    ),
)
PERSIMMON = Family(
    "persimmon",
    "PersimmonForCausalLM",
    (
        *SIZES,
        Same(("heads", "kv_heads"), "num_attention_heads"),
        Rope(fraction="partial_rotary_factor", default_fraction=0.5),
        Key("activation", "hidden_act", "relu2", ACTIVATIONS),
        Key("norm_eps", "layer_norm_eps", 1e-5),
        Key("qk_norm", "qk_layernorm", True),
        Always({"norm": "layernorm", "positions": "rope", "biases": True}),
        Only({"head_dim": (None,)}),
    ),
    rows=(
        Row("embed", ("model.embed_tokens",)),
        Row("norm", ("model.final_layernorm",)),
        Row("head", ("lm_head",)),
    ),
    layer="model.layers.{}.",
    layer_rows=(
        Row("attention_norm", ("input_layernorm",)),
        Row("ff_norm", ("post_attention_layernorm",)),
        Row("attention.q_norm", ("self_attn.q_layernorm",), ONE_HEAD),
        Row("attention.k_norm", ("self_attn.k_layernorm",), ONE_HEAD),
        Row("attention.qkv", ("self_attn.query_key_value",), QKV_BY_HEAD),
        Row("attention.out", ("self_attn.dense",)),
        Row("ff.up", ("mlp.dense_h_to_4h",)),
        Row("ff.down", ("mlp.dense_4h_to_h",)),
    ),
    prefixes=("model.", ""),
)
# of each layer with norms of queries and keys, one number a channel of a head
PERSIMMON_ZEROS = ("self_attn.q_layernorm.bias", "self_attn.k_layernorm.bias")
