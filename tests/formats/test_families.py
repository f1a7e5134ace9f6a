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
COMMON = {
    "vocab_size": TOKENS,
    "max_position_embeddings": LENGTH,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": None,
}


def made(folder: Path, family: str, settings: dict[str, Any]) -> tuple[Path, Any]:
    """A checkpoint of a random network, and the network."""
    transformers = pytest.importorskip("transformers", reason="transformers, an optional extra, is not installed")
    head = {"GPT2": "LMHeadModel"}.get(family, "ForCausalLM")
    config = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")(**settings)
    config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(len(settings))
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


def assert_same(folder: Path, name: str, settings: dict[str, Any]) -> None:
    """Imported it says the same, at once and decoded, and taken back it is the first one bit for bit."""
    folder, theirs = made(folder, name, settings)
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


def assert_written_as_read(folder: Path, name: str, settings: dict[str, Any]) -> None:
    """A shape is written as it was read, also as transformers reads it."""
    folder, _ = made(folder, name, settings)
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
    for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "olmo2", "gpt2", "gpt_neox", "opt"):
        with pytest.raises(InputError, match=r"model\."):
            FAMILIES[name].settings(plain)
    llama = GPTConfig(**{**plain.to_json(), "activation": "swiglu"})
    assert FAMILIES["llama"].settings(llama)["num_key_value_heads"] == 2
    with pytest.raises(InputError, match=r"model\.qk_norm = True"):
        FAMILIES["llama"].settings(GPTConfig(**{**llama.to_json(), "qk_norm": True}))
    with pytest.raises(InputError, match="rope_scaling = 'yarn'"):
        FAMILIES["llama"].settings(GPTConfig(**{**llama.to_json(), "rope_scaling": "yarn", "rope_trained": 16}))
    assert computed(computed(plain)) == computed(plain)
