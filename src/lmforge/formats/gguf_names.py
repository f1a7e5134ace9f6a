"""What a GGUF file says of a network, in the words of `transformers`: the keys of config.json, the names of tensors.

A GGUF file is a Hugging Face checkpoint that was renamed and, in places, laid out anew (llama.cpp's
`convert_hf_to_gguf.py`); naming it back leaves one place, `lmforge.formats.transformers`, that knows what our network
makes of a checkpoint.

    llama      queries and keys are permuted, head by head: neighbouring channels turn together, where transformers
               turns j with j + E/2. Keys have heads of their own number. (Also SmolLM, Mistral.)
    gpt2       matrices stand as (outputs, inputs), in a checkpoint the other way round
    gptneox    queries, keys and values stand one after another, in a checkpoint head by head
    gemma3     gains of norms are 1 + those of a checkpoint
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.gguf_file import GgufFile

LLAMA3_LOW, LLAMA3_HIGH, LLAMA3_TRAINED = 1.0, 4.0, 8192  # of every published model with this scaling
_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPTNEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
# architecture → model_type, where the layers stand, names of tensors
ARCHITECTURES: dict[str, tuple[str, str, Mapping[str, str]]] = {
    "llama": ("llama", "model.layers", _LLAMA),
    "qwen2": ("qwen2", "model.layers", _LLAMA),
    "qwen3": ("qwen3", "model.layers", _LLAMA),
    "gpt2": ("gpt2", "transformer.h", _GPT2),
    "gptneox": ("gpt_neox", "gpt_neox.layers", _GPTNEOX),
    "phi3": (
        "phi3",
        "model.layers",
        {**_LLAMA, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    "gemma3": ("gemma3_text", "model.layers", {**_LLAMA, **_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}),
    "olmo2": (
        "olmo2",
        "model.layers",
        {**{ours: theirs for ours, theirs in _LLAMA.items() if ours not in ("attn_norm", "ffn_norm")}, **_POST_NORMS},
    ),
}
_OUTSIDE = ("token_embd", "position_embd", "output_norm", "output")
_IN_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
# no weights: what rotations are scaled by, which the settings say
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def settings_of(file: GgufFile) -> dict[str, Any]:
    """The config.json that the file was made from, as far as it says.

    Raises:
        InputError: an architecture that is not known, a key missing or of another kind.
    """
    architecture = file.architecture
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{file.path}: general.architecture = {architecture or None!r}; {', '.join(ARCHITECTURES)} can be read"
        )
    given = _Keys(file)
    tensors = file.tensors
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{file.path}: no tensor token_embd.weight; is the file complete?")
    heads = given.number("attention.head_count")
    common: dict[str, Any] = {
        "model_type": ARCHITECTURES[architecture][0],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if architecture == "gpt2":
        return common | {
            "tie_word_embeddings": True,
            "n_embd": given.number("embedding_length"),
            "n_positions": given.number("context_length"),
            "n_layer": given.number("block_count"),
            "n_head": heads,
            "n_inner": given.number("feed_forward_length"),
            "activation_function": "gelu_new",
            "layer_norm_epsilon": given.real("attention.layer_norm_epsilon"),
        }
    common |= {
        "hidden_size": given.number("embedding_length"),
        "num_hidden_layers": given.number("block_count"),
        "num_attention_heads": heads,
        "intermediate_size": given.number("feed_forward_length"),
        "max_position_embeddings": given.number("context_length"),
        **_rope(file, given),
    }
    return common | (_gptneox(given) if architecture == "gptneox" else _of_llama_kin(file, given, heads))


def _of_llama_kin(file: GgufFile, given: _Keys, heads: int) -> dict[str, Any]:
    """The keys of Llama and those that descend from it."""
    width, tensors = given.number("embedding_length"), file.tensors
    head_dim = given.optional("attention.key_length") or given.optional("rope.dimension_count") or width // heads
    if file.architecture == "phi3":
        head_dim = width // heads
    settings = {
        "num_key_value_heads": given.number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": given.real("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_output.bias" in tensors
        or (file.architecture == "llama" and "blk.0.attn_q.bias" in tensors),
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
    }
    window = given.optional("attention.sliding_window")
    if file.architecture == "llama" and window:
        settings |= {"model_type": "mistral", "sliding_window": window}
    elif file.architecture == "phi3":
        rotary = given.number("rope.dimension_count", head_dim)
        settings |= {"sliding_window": window, "partial_rotary_factor": rotary / head_dim}
    elif file.architecture == "gemma3":
        layers, every = given.number("block_count"), given.number("attention.sliding_window_pattern", 6)
        settings |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": window,
            "query_pre_attn_scalar": width // heads if layers == 62 else head_dim,  # 62: the model of 27 B
            "rope_local_base_freq": float(given.optional("rope.freq_base_swa") or 10_000.0),
            "layer_types": [
                "full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)
            ],
        }
        del settings["hidden_act"]
    return settings


def _gptneox(given: _Keys) -> dict[str, Any]:
    head_dim = given.number("embedding_length") // given.number("attention.head_count")
    return {
        "layer_norm_eps": given.real("attention.layer_norm_epsilon"),
        "rotary_emb_base": float(given.optional("rope.freq_base") or 10_000.0),
        "rotary_pct": given.number("rope.dimension_count", head_dim) / head_dim,
        "use_parallel_residual": bool(given.metadata.get("gptneox.use_parallel_residual", True)),
        "hidden_act": "gelu",
        "attention_bias": True,
    }


def _rope(file: GgufFile, given: _Keys) -> dict[str, Any]:
    """How positions turn, in one of the keys that config.json has for it."""
    base = float(given.optional("rope.freq_base") or 10_000.0)
    kind = str(given.metadata.get(f"{file.architecture}.rope.scaling.type") or "none")
    scaling: dict[str, Any] | None = None
    if "rope_freqs.weight" in file.tensors:
        scaling = _llama3(file, base)
    elif "rope_factors_long.weight" in file.tensors:
        scaling = {"rope_type": "longrope"}
    elif kind != "none":
        scaling = {"rope_type": kind, "factor": given.real("rope.scaling.factor")}
        trained = given.optional("rope.scaling.original_context_length")
        scaling |= {"original_max_position_embeddings": trained} if trained else {}
    return {"rope_theta": base} if scaling is None else {"rope_theta": base, "rope_scaling": scaling}


def _llama3(file: GgufFile, base: float) -> dict[str, Any]:
    """Llama 3's scaling, of which a file holds what each pair of channels is slowed by. The frequencies that are left
    alone, and those that are slowed fully, are the same in all published models; the file must agree.

    Raises:
        InputError: it does not.
    """
    slowed = file.tensor("rope_freqs.weight").double()
    factor = float(slowed.max())
    waves = 2 * torch.pi * base ** (torch.arange(len(slowed)).double() / len(slowed))  # tokens of a whole turn
    low, high = LLAMA3_TRAINED / LLAMA3_LOW, LLAMA3_TRAINED / LLAMA3_HIGH
    blend = ((LLAMA3_TRAINED / waves - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)).clamp(0, 1)
    expected = 1 / ((1 - blend) / factor + blend)
    expected = torch.where(waves < high, 1.0, torch.where(waves > low, factor, expected))
    if not torch.allclose(slowed, expected, rtol=1e-3):
        raise InputError(f"{file.path}: rope_freqs.weight is none of Llama 3's scaling; such rotations cannot be read")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_TRAINED,
    }


class _Keys:
    """The metadata of a file's architecture."""

    def __init__(self, file: GgufFile) -> None:
        self.path, self.architecture, self.metadata = file.path, file.architecture, file.metadata

    def optional(self, key: str) -> int | None:
        """A whole number, or None. Where there is one for each layer they have to be equal."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise InputError(
                    f"{self.path}: {self.architecture}.{key} differs from layer to layer, which cannot be read"
                )
            value = value[0]
        return value if value is None else int(value)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number that has to be there, unless there is a default."""
        value = self.optional(key)
        value = default if value is None else value
        if value is None:
            raise self._missing(key)
        return value

    def real(self, key: str) -> float:
        """A number that has to be there, as decimal notation rounds it to six digits: it is kept in 32 bits."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            raise self._missing(key)
        return float(f"{value:.6g}")

    def _missing(self, key: str) -> InputError:
        return InputError(f"{self.path}: no {self.architecture}.{key} in the metadata; convert the model again")


def checkpoint_name(architecture: str, name: str) -> str | None:
    """What a checkpoint calls a tensor of a file; None where this architecture has none such."""
    _, layers, names = ARCHITECTURES[architecture]
    inside = _IN_LAYER.fullmatch(name)
    if inside:
        part = names.get(inside[2])
        return f"{layers}.{inside[1]}.{part}.{inside[3]}" if part else None
    stem, _, kind = name.rpartition(".")
    return f"{names[stem]}.{kind}" if stem in names and kind in ("weight", "bias") else None


def gguf_name(architecture: str, name: str) -> str:
    """What a file calls a tensor of a checkpoint.

    Raises:
        InputError: this architecture has none such.
    """
    _, layers, names = ARCHITECTURES[architecture]
    stem, _, kind = name.rpartition(".")
    number, layer = "", ""
    if stem.startswith(f"{layers}."):
        number, _, stem = stem.removeprefix(f"{layers}.").partition(".")
        layer = f"blk.{number}."
    for ours, theirs in names.items():
        if theirs == stem and (ours in _OUTSIDE) != bool(layer):
            return f"{layer}{ours}.{kind}"
    raise InputError(f"GGUF's architecture {architecture} has no tensor for {name}")


def laid_out(
    architecture: str, settings: Mapping[str, Any], name: str, back: bool = False
) -> Callable[[Tensor], Tensor]:
    """What turns a tensor of the file into that of a checkpoint; with `back`, that of a checkpoint into the file's."""
    inside = _IN_LAYER.fullmatch(name)
    part = inside[2] if inside else ""
    if architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = settings["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
        turn = pairs_from_halves if back else halves_from_pairs
        return lambda tensor: turn(tensor, heads)
    if architecture == "gpt2" and part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return lambda tensor: tensor.t() if tensor.ndim == 2 else tensor
    if architecture == "gptneox" and part == "attn_qkv":
        heads = settings["num_attention_heads"]
        sizes = (heads, 3, -1) if back else (3, heads, -1)
        return lambda tensor: tensor.unflatten(0, sizes).transpose(0, 1).flatten(0, 2)
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return lambda tensor: tensor + (1 if back else -1)
    return lambda tensor: tensor


def halves_from_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys, (H·E, …): channels 2j and 2j + 1 of each head become j and j + E/2."""
    result: Tensor = rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return result


def pairs_from_halves(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `halves_from_pairs`."""
    result: Tensor = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return result
