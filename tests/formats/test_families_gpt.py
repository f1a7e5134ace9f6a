"""GPT-2 and what followed it, as transformers makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.formats.test_families import COMMON, LENGTH, TOKENS, assert_same, assert_written_as_read
from tests.tokens.test_tokenizer_json import END

GPT = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 80, **COMMON}
OPT = {key: value for key, value in GPT.items() if key != "intermediate_size"} | {"ffn_dim": 80}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 48, "n_positions": LENGTH, "vocab_size": TOKENS, "eos_token_id": END}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {**GPT2, "n_inner": 100}),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "activation_function": "relu"}),
    "pythia": ("GPTNeoX", {**GPT, "rotary_pct": 0.5, "rotary_emb_base": 5000}),
    "neox-in-turn": ("GPTNeoX", {**GPT, "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0}),
    "opt": ("OPT", OPT),
    "opt-untied": ("OPT", {**OPT, "tie_word_embeddings": False, "enable_bias": False, "activation_function": "gelu"}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_imported_network_says_the_same_and_goes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    assert_same(tmp_path, *CHECKPOINTS[name])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_shape_is_written_as_it_was_read(tmp_path: Path, name: str) -> None:
    assert_written_as_read(tmp_path, *CHECKPOINTS[name])
