"""Llama and its kin, as transformers makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.formats.test_families import COMMON, LENGTH, assert_same, assert_written_as_read

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
KIN = {
    **COMMON,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
GEMMA = {**KIN, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 20, "num_hidden_layers": 4}
FACTORS = [1.0, 1.5, 2.0, 4.0]
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("Llama", {**KIN, "num_key_value_heads": 4, "rope_theta": 5000.0}),
    "llama-3": ("Llama", {**KIN, "rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama-tied-biases": ("Llama", {**KIN, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-attention-biases": ("Llama", {**KIN, "attention_bias": True, "head_dim": 20}),
    "llama-linear": ("Llama", {**KIN, "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "mlp_bias": True}),
    "smollm2": ("Llama", {**KIN, "tie_word_embeddings": True, "rope_theta": 1e5}),
    "mistral": ("Mistral", {**KIN, "sliding_window": 30, "head_dim": 16}),
    "mistral-nemo": ("Mistral", {**KIN, "sliding_window": None, "head_dim": 8}),
    "qwen2": ("Qwen2", {**KIN, "tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", {**KIN, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**KIN, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biases": ("Qwen3", {**KIN, "head_dim": 12, "attention_bias": True}),
    "phi3": ("Phi3", {**KIN, "sliding_window": 30}),
    "phi3-long": (
        "Phi3",
        {
            **KIN,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": LENGTH,
            "max_position_embeddings": 2 * LENGTH,
            "rope_scaling": {"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS[::-1]},
        },
    ),
    "gemma3": ("Gemma3", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "gemma3-scaled": (
        "Gemma3",
        {
            **GEMMA,
            "sliding_window_pattern": 2,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
    "olmo2": ("Olmo2", {**KIN, "attention_bias": True}),
    "olmo2-tied": ("Olmo2", {**KIN, "num_key_value_heads": 4, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_imported_network_says_the_same_and_goes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    assert_same(tmp_path, *CHECKPOINTS[name])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_shape_is_written_as_it_was_read(tmp_path: Path, name: str) -> None:
    assert_written_as_read(tmp_path, *CHECKPOINTS[name])
