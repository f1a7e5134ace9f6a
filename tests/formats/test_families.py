"""Networks of each family that transformers makes: imported they say the same, and exported they are the first ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmforge.errors import InputError
from lmforge.formats.families import FAMILIES, Family, computed, differences, family_of
from lmforge.formats.transformers import own_tensors, read_checkpoint
from lmforge.model.cache import KVCache
from lmforge.model.config import GPTConfig
from tests.tokens.test_tokenizer_json import END, vocabulary

LENGTH = 320
TOKENS = END + 1
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
COMMON = {
    "vocab_size": TOKENS,
    "max_position_embeddings": LENGTH,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": None,
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
GPT = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 80, **COMMON}
OPT = {key: value for key, value in GPT.items() if key != "intermediate_size"} | {"ffn_dim": 80}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": 48, "n_positions": LENGTH, "vocab_size": TOKENS, "eos_token_id": END}
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
    "gpt2": ("GPT2", {**GPT2, "n_inner": 100}),
    "gpt2-untied": ("GPT2", {**GPT2, "tie_word_embeddings": False, "activation_function": "relu"}),
    "pythia": ("GPTNeoX", {**GPT, "rotary_pct": 0.5, "rotary_emb_base": 5000}),
    "neox-in-turn": ("GPTNeoX", {**GPT, "use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0}),
    "opt": ("OPT", OPT),
    "opt-untied": ("OPT", {**OPT, "tie_word_embeddings": False, "enable_bias": False, "activation_function": "gelu"}),
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
}  # fmt: skip


def made(folder: Path, name: str) -> tuple[Path, Any]:
    """A checkpoint of a random network, and the network."""
    transformers = pytest.importorskip("transformers", reason="transformers, an optional extra, is not installed")
    family, settings = CHECKPOINTS[name]
    head = {"GPT2": "LMHeadModel"}.get(family, "ForCausalLM")
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(len(name))
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(drawn.mul(0.3).add(1)) if parameter.ndim == 1 else parameter.copy_(drawn * 0.15)
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary()))
    return folder, model


def back(family: Family, config: GPTConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors, from ours."""
    places = family.places(config, tensors)
    return {name: tensor for place in places for name, tensor in place.split(tensors[place.ours])}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_imported_network_says_the_same_and_goes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    folder, theirs = made(tmp_path, name)
    loaded = read_checkpoint(folder, LENGTH)
    tokens = torch.randint(TOKENS, (1, LENGTH), generator=torch.Generator().manual_seed(3))
    cache = KVCache(1, LENGTH, torch.device("cpu"))
    with torch.no_grad():
        expected = theirs(tokens).logits
        whole = loaded.model(tokens)
        pieces = (*tokens[:, :160].split((100, 60), 1), *tokens[:, 160:].split(1, 1))
        decoded = torch.cat([loaded.model(piece, cache) for piece in pieces], 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)

    first = load_file(folder / "model.safetensors")
    family = family_of(json.loads((folder / "config.json").read_text()))
    again = back(family, loaded.config, own_tensors(loaded.model))
    padding = {"model.decoder.embed_positions.weight": 2}  # rows that are never looked up
    assert set(again) == set(first)
    for key, tensor in again.items():
        assert torch.equal(tensor[padding.get(key, 0) :], first[key][padding.get(key, 0) :]), key


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_shape_is_written_as_it_was_read(tmp_path: Path, name: str) -> None:
    """Also as transformers reads it."""
    folder, _ = made(tmp_path, name)
    family = family_of(json.loads((folder / "config.json").read_text()))
    config = family.shape(json.loads((folder / "config.json").read_text()), TOKENS, LENGTH)
    written = json.loads(json.dumps(family.settings(config)))
    assert not differences(config, family.shape(written, TOKENS))
    transformers = pytest.importorskip("transformers")
    kind = transformers.AutoConfig.for_model(**written)
    read = family.shape(json.loads(json.dumps(kind.to_dict())), TOKENS)
    assert not differences(config, read)


def test_what_a_family_cannot_say_is_named() -> None:
    plain = GPTConfig(vocab_size=300, context=32, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=64)
    for family in FAMILIES.values():
        with pytest.raises(InputError, match=r"model\."):
            family.settings(plain)
    llama = GPTConfig(**{**plain.to_json(), "activation": "swiglu"})
    assert FAMILIES["llama"].settings(llama)["num_key_value_heads"] == 2
    with pytest.raises(InputError, match=r"model\.qk_norm = True"):
        FAMILIES["llama"].settings(GPTConfig(**{**llama.to_json(), "qk_norm": True}))
    with pytest.raises(InputError, match="rope_scaling = 'yarn'"):
        FAMILIES["llama"].settings(GPTConfig(**{**llama.to_json(), "rope_scaling": "yarn", "rope_trained": 16}))
    assert computed(computed(plain)) == computed(plain)
