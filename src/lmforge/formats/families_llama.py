"""Llama and its kin: gated feed-forward, RMSNorm, RoPE.

Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), SmolLM and SmolLM2 with it; Mistral (Jiang et al.
2023); Qwen 2, 2.5 and 3 (Yang et al. 2024, 2025); Phi-3 (Abdin et al. 2024); Gemma 3 (Gemma Team 2025);
OLMo 2 (OLMo Team 2024)
"""

from __future__ import annotations

from typing import Any

from lmforge.formats.families import FAMILIES, Family
from lmforge.formats.families_keys import Always, Key, Only, Power, Rule, Same
from lmforge.formats.families_rows import GATE_AND_INPUT, KEYS, ONE_HEAD, QKV, QKV_STACKED, QUERIES, Row
from lmforge.formats.families_rules import Heads, Rope, TwoRopes, Windows

SIZES: tuple[Rule, ...] = (
    Key("d_model", "hidden_size"),
    Key("layers", "num_hidden_layers"),
    Key("d_ff", "intermediate_size"),
    Always({"norm": "rmsnorm", "positions": "rope"}),
)
SILU = Key("activation", "hidden_act", "silu", {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"})
EPSILON = Key("norm_eps", "rms_norm_eps", 1e-6)
UNTIED = Key("tied", "tie_word_embeddings", False)
ATTENTION_BIASES = Same(("qkv_biases", "out_biases"), "attention_bias", False)
TABLES = (Row("embed", ("model.embed_tokens",)), Row("norm", ("model.norm",)), Row("head", ("lm_head",)))
MATRICES = (
    Row("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), QKV),
    Row("attention.out", ("self_attn.o_proj",)),
    Row("ff.up", ("mlp.gate_proj", "mlp.up_proj"), GATE_AND_INPUT),
    Row("ff.down", ("mlp.down_proj",)),
)
NORMS = (Row("attention_norm", ("input_layernorm",)), Row("ff_norm", ("post_attention_layernorm",)))
HEAD_NORMS = (
    Row("attention.q_norm", ("self_attn.q_norm",), ONE_HEAD),
    Row("attention.k_norm", ("self_attn.k_norm",), ONE_HEAD),
)


def _kin(model_type: str, name: str, rules: tuple[Rule, ...], layer_rows: tuple[Row, ...], **more: Any) -> None:
    """Register one of them."""
    more = {"prefixes": ("model.", ""), "ignored": (r"rotary_emb\.inv_freq$",), **more}
    family = Family(
        model_type=model_type,
        architecture=f"{name}ForCausalLM",
        rules=(*SIZES, *rules),
        rows=TABLES,
        layer="model.layers.{}.",
        layer_rows=layer_rows,
        **more,
    )
    FAMILIES.register(model_type, family)


_kin(
    "llama",
    "Llama",
    (Heads(), Rope(), SILU, EPSILON, UNTIED, ATTENTION_BIASES, Key("biases", "mlp_bias", False)),
    (*NORMS, *MATRICES),
)
_kin("mistral", "Mistral", (Heads(kv_heads=8), Rope(), SILU, EPSILON, UNTIED, Windows(4096)), (*NORMS, *MATRICES))
_kin(
    "qwen2",
    "Qwen2",
    (
        Heads(),
        Rope(),
        SILU,
        EPSILON,
        UNTIED,
        Always({"qkv_biases": True}),
        Windows(4096, "use_sliding_window", by_layer=True),
    ),
    (*NORMS, *MATRICES),
)
_kin(
    "qwen3",
    "Qwen3",
    (
        Heads(head_dim=128),
        Rope(),
        SILU,
        EPSILON,
        UNTIED,
        ATTENTION_BIASES,
        Always({"qk_norm": True}),
        Windows(4096, "use_sliding_window", by_layer=True),
    ),
    (*NORMS, *MATRICES, *HEAD_NORMS),
)
_kin(
    "phi3",
    "Phi3",
    (
        Heads(),
        Rope(fraction="partial_rotary_factor"),
        SILU,
        Key("norm_eps", "rms_norm_eps", 1e-5),
        UNTIED,
        Windows(),
    ),
    (
        *NORMS,
        Row("attention.qkv", ("self_attn.qkv_proj",), QKV_STACKED),
        Row("attention.out", ("self_attn.o_proj",)),
        Row("ff.up", ("mlp.gate_up_proj",)),
        Row("ff.down", ("mlp.down_proj",)),
    ),
)
_kin(
    "olmo2",
    "Olmo2",
    (
        Heads(),
        Rope(),
        SILU,
        Key("norm_eps", "rms_norm_eps", 1e-5),
        UNTIED,
        ATTENTION_BIASES,
        Always({"norm_placement": "post", "qk_norm_full": True}),
    ),
    (
        Row("attention_out_norm", ("post_attention_layernorm",)),
        Row("ff_out_norm", ("post_feedforward_layernorm",)),
        Row("attention.q_norm", ("self_attn.q_norm",), QUERIES),
        Row("attention.k_norm", ("self_attn.k_norm",), KEYS),
        *MATRICES,
    ),
)
_kin(
    "gemma3_text",
    "Gemma3",
    (
        Heads(8, 4, 256),
        TwoRopes(),
        Key("activation", "hidden_activation", "gelu_pytorch_tanh", {"gelu_pytorch_tanh": "geglu", "silu": "swiglu"}),
        EPSILON,
        Key("tied", "tie_word_embeddings", True),
        ATTENTION_BIASES,
        Power("attention_scale", "query_pre_attn_scalar", -0.5, 256),
        Power("embedding_scale", "hidden_size", 0.5, derived=True),
        Always({"norm_placement": "both", "norm_offset": 1.0, "qk_norm": True}),
        Windows(4096, by_layer=True, pattern=6, kept=True),
        Only(
            {
                "final_logit_softcapping": (None,),
                "attn_logit_softcapping": (None,),
                "use_bidirectional_attention": (False, None),
            }
        ),
    ),
    (
        Row("attention_norm", ("input_layernorm",)),
        Row("attention_out_norm", ("post_attention_layernorm",)),
        Row("ff_norm", ("pre_feedforward_layernorm",)),
        Row("ff_out_norm", ("post_feedforward_layernorm",)),
        *MATRICES,
        *HEAD_NORMS,
    ),
    reach=131_072,
    section="text_config",
    aliases=("gemma3",),
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    ignored=(r"rotary_emb\.inv_freq$", r"^(model\.)?(vision_tower|multi_modal_projector)\."),
)
