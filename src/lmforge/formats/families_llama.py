"""Llama and its kin: gated feed-forward, RMSNorm, RoPE.

    Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), SmolLM and SmolLM2 with it; Mistral (Jiang et al.
    2023); Qwen 2, 2.5 and 3 (Yang et al. 2024, 2025); Phi-3 (Abdin et al. 2024); Gemma 3 (Gemma Team 2025);
    OLMo 2 (OLMo Team 2024)
"""

from __future__ import annotations

from lmforge.formats.families import FAMILIES, GATE_AND_INPUT, QKV, Always, Family, Key, Only, Row, Rule
from lmforge.formats.families_rules import HeadWidth, Rope

SIZES: tuple[Rule, ...] = (
    Key("d_model", "hidden_size"),
    Key("layers", "num_hidden_layers"),
    Key("heads", "num_attention_heads"),
    Key("d_ff", "intermediate_size"),
    Key("norm_eps", "rms_norm_eps", 1e-6),
    Always({"norm": "rmsnorm", "positions": "rope"}),
    HeadWidth(),
    Rope(),
)
SILU = Key("activation", "hidden_act", "silu", {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"})
UNTIED = Key("tied", "tie_word_embeddings", False)
TABLES = (Row("embed", ("model.embed_tokens",)), Row("norm", ("model.norm",)), Row("head", ("lm_head",)))
MATRICES = (
    Row("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), QKV),
    Row("attention.out", ("self_attn.o_proj",)),
    Row("ff.up", ("mlp.gate_proj", "mlp.up_proj"), GATE_AND_INPUT),
    Row("ff.down", ("mlp.down_proj",)),
)
NORMS = (Row("attention_norm", ("input_layernorm",)), Row("ff_norm", ("post_attention_layernorm",)))
LAYER = "model.layers.{}."
PREFIXES = ("model.", "")
FREQUENCIES = ("rotary_emb.inv_freq",)

FAMILIES.register(
    "llama",
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        rules=(
            *SIZES,
            SILU,
            UNTIED,
            Key("qkv_biases", "attention_bias", False),
            Key("out_biases", "attention_bias", False),
            Key("biases", "mlp_bias", False),
            Only({"pretraining_tp": (1, None)}),
        ),
        rows=TABLES,
        layer=LAYER,
        layer_rows=(*NORMS, *MATRICES),
        prefixes=PREFIXES,
        ignored=FREQUENCIES,
    ),
)
