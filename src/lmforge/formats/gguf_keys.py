"""config.json of a family → the metadata of a GGUF file: the way back of `gguf_names.settings_of`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmforge.model.config import GPTConfig


def metadata_of(architecture: str, settings: Mapping[str, Any], config: GPTConfig) -> dict[str, Any]:
    """The keys of an architecture, as llama.cpp reads them."""
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.d_model,
        "block_count": config.layers,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.heads,
    }
    eps = config.norm_eps or (1e-5 if config.norm == "layernorm" else 1e-6)
    fields["attention.layer_norm_epsilon" if config.norm == "layernorm" else "attention.layer_norm_rms_epsilon"] = eps
    if config.positions == "rope":
        fields |= {
            "rope.dimension_count": config.rotary_width,
            "rope.freq_base": float(config.rope_base),
        }
    if architecture != "gpt2":
        fields |= {
            "attention.head_count_kv": config.kv_heads,
            "attention.key_length": config.head_width,
            "attention.value_length": config.head_width,
        }
    if config.rope_scaling in ("linear", "yarn"):
        fields |= {"rope.scaling.type": config.rope_scaling, "rope.scaling.factor": float(config.rope_stretch)}
        if config.rope_scaling == "yarn":
            fields["rope.scaling.original_context_length"] = config.rope_trained
    if architecture == "gptneox":
        fields["use_parallel_residual"] = config.parallel_residual
    if architecture in ("gemma3", "phi3") and "window" in config.attention:
        fields["attention.sliding_window"] = config.window
    if architecture == "gemma3" and config.rope_local_base:
        fields["rope.freq_base_swa"] = float(config.rope_local_base)
    if "layer_types" in settings and architecture == "gemma3":
        fields["attention.sliding_window_pattern"] = _pattern(settings["layer_types"])
    return {f"{architecture}.{key}": value for key, value in fields.items()}


def _pattern(kinds: Any) -> int:
    """Every how many layers one sees everything."""
    return next((number for number, kind in enumerate(kinds, 1) if kind == "full_attention"), len(kinds) + 1)
