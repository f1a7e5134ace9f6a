"""Checkpoints that transformers makes of Arcee and Apertus are read, and written again to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmforge.errors import InputError
from lmforge.formats.export_transformers import TransformersExport
from lmforge.formats.families import FAMILIES
from lmforge.formats.families_ungated import PERSIMMON
from lmforge.formats.transformers import read_checkpoint
from lmforge.model.config import GPTConfig
from tests.formats.exporting import LAPTOP, SMALL, chat_tokenizer

transformers = pytest.importorskip("transformers")
SIZES: dict[str, Any] = {
    "vocab_size": 280,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}


def checkpoint(folder: Path, kind: str, **settings: Any) -> Any:
    config = transformers.AutoConfig.for_model(kind, **SIZES, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    chat_tokenizer().save(folder / "tokenizer.json")
    return model


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("arcee", {"mlp_bias": True, "attention_bias": True, **PLAIN}),
        ("arcee", {"tie_word_embeddings": True, "hidden_act": "gelu", "head_dim": 16}),
        ("apertus", {"hidden_act": "relu2", **PLAIN}),
    ],
)
def test_read_and_written_again(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    model = checkpoint(tmp_path / "theirs", kind, **settings)
    loaded = read_checkpoint(tmp_path / "theirs")
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        assert torch.allclose(loaded.model(tokens), model(tokens).logits, atol=1e-4)
    report = TransformersExport().write(loaded, tmp_path / "again")
    assert report["architecture"] == type(model).__name__
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_activation_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "theirs", "apertus", **PLAIN)
    with pytest.raises(InputError, match="hidden_act = 'xielu'"):
        read_checkpoint(tmp_path / "theirs")


def test_persimmon_is_written_and_not_read(tmp_path: Path) -> None:
    assert "persimmon" not in FAMILIES
    config = GPTConfig(**{**SMALL, **LAPTOP, "biases": True})
    settings = PERSIMMON.settings(config)
    assert settings["model_type"] == "persimmon"
    assert settings["partial_rotary_factor"] == 1
    with pytest.raises(InputError, match=r"model\.kv_heads"):
        PERSIMMON.settings(GPTConfig(**{**SMALL, **LAPTOP, "biases": True, "kv_heads": 2}))
    checkpoint(tmp_path / "theirs", "arcee")
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "persimmon"}')
    with pytest.raises(InputError, match="persimmon"):
        read_checkpoint(tmp_path / "theirs")
