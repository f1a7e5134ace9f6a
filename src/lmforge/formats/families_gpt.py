"""GPT-2 and what followed it: LayerNorm, biases, one feed-forward matrix each way.

GPT-2 (Radford et al. 2019); OPT (Zhang et al. 2022); GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023)
"""

from __future__ import annotations

from lmforge.formats.families import FAMILIES, Family
from lmforge.formats.families_keys import Always, Equal, Key, Only, Same, Times
from lmforge.formats.families_rows import QKV, QKV_BY_HEAD, Row
from lmforge.formats.families_rules import Rope

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}

FAMILIES.register(
    "gpt2",
    Family(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        context="n_positions",
        rules=(
            Key("d_model", "n_embd"),
            Key("layers", "n_layer"),
            Same(("heads", "kv_heads"), "n_head"),
            Times("d_ff", "n_inner", 4, "n_embd"),
            Key("activation", "activation_function", "gelu_new", ACTIVATIONS),
            Key("norm_eps", "layer_norm_epsilon", 1e-5),
            Key("tied", "tie_word_embeddings", True),
            Always({"norm": "layernorm", "positions": "learned", "biases": True}),
            Only(
                {
                    "scale_attn_weights": (True,),
                    "scale_attn_by_inverse_layer_idx": (False,),
                    "add_cross_attention": (False,),
                }
            ),
        ),
        rows=(
            Row("embed", ("transformer.wte",)),
            Row("learned_positions", ("transformer.wpe",)),
            Row("norm", ("transformer.ln_f",)),
            Row("head", ("lm_head",)),
        ),
        layer="transformer.h.{}.",
        layer_rows=(
            Row("attention_norm", ("ln_1",)),
            Row("attention.qkv", ("attn.c_attn",), transposed=True),
            Row("attention.out", ("attn.c_proj",), transposed=True),
            Row("ff_norm", ("ln_2",)),
            Row("ff.up", ("mlp.c_fc",), transposed=True),
            Row("ff.down", ("mlp.c_proj",), transposed=True),
        ),
        prefixes=("transformer.", ""),
        ignored=(r"\.attn\.(bias|masked_bias)$",),
    ),
)
FAMILIES.register(
    "gpt_neox",
    Family(
        model_type="gpt_neox",
        architecture="GPTNeoXForCausalLM",
        rules=(
            Key("d_model", "hidden_size"),
            Key("layers", "num_hidden_layers"),
            Same(("heads", "kv_heads"), "num_attention_heads"),
            Key("d_ff", "intermediate_size"),
            Key("activation", "hidden_act", "gelu", ACTIVATIONS),
            Key("norm_eps", "layer_norm_eps", 1e-5),
            Key("tied", "tie_word_embeddings", False),
            Key("parallel_residual", "use_parallel_residual", True),
            Same(("qkv_biases", "out_biases"), "attention_bias", True),
            Rope("rotary_emb_base", fraction="rotary_pct", default_fraction=0.25),
            Always({"norm": "layernorm", "positions": "rope", "biases": True}),
        ),
        rows=(
            Row("embed", ("gpt_neox.embed_in",)),
            Row("norm", ("gpt_neox.final_layer_norm",)),
            Row("head", ("embed_out",)),
        ),
        layer="gpt_neox.layers.{}.",
        layer_rows=(
            Row("attention_norm", ("input_layernorm",)),
            Row("attention.qkv", ("attention.query_key_value",), QKV_BY_HEAD),
            Row("attention.out", ("attention.dense",)),
            Row("ff_norm", ("post_attention_layernorm",)),
            Row("ff.up", ("mlp.dense_h_to_4h",)),
            Row("ff.down", ("mlp.dense_4h_to_h",)),
        ),
        prefixes=("gpt_neox.", ""),
        ignored=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$", r"rotary_emb\.inv_freq$"),
    ),
)
FAMILIES.register(
    "opt",
    Family(
        model_type="opt",
        architecture="OPTForCausalLM",
        rules=(
            Key("d_model", "hidden_size"),
            Key("layers", "num_hidden_layers"),
            Same(("heads", "kv_heads"), "num_attention_heads"),
            Key("d_ff", "ffn_dim"),
            Key("activation", "activation_function", "relu", ACTIVATIONS),
            Key("tied", "tie_word_embeddings", True),
            Key("biases", "enable_bias", True),
            Always({"norm": "layernorm", "norm_eps": 1e-5, "norm_biases": True, "positions": "learned"}),
            Only(
                {
                    "do_layer_norm_before": (True,),
                    "_remove_final_layer_norm": (False,),
                    "layer_norm_elementwise_affine": (True,),
                }
            ),
            Equal("word_embed_proj_dim", "hidden_size"),
        ),
        rows=(
            Row("embed", ("model.decoder.embed_tokens",)),
            Row("learned_positions", ("model.decoder.embed_positions",), skipped=2),  # of padding
            Row("norm", ("model.decoder.final_layer_norm",)),
            Row("head", ("lm_head",)),
        ),
        layer="model.decoder.layers.{}.",
        layer_rows=(
            Row("attention_norm", ("self_attn_layer_norm",)),
            Row("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), QKV),
            Row("attention.out", ("self_attn.out_proj",)),
            Row("ff_norm", ("final_layer_norm",)),
            Row("ff.up", ("fc1",)),
            Row("ff.down", ("fc2",)),
        ),
        prefixes=("model.decoder.", "decoder.", ""),
    ),
)
