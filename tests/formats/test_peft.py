"""peft puts our adapter into the exported base, and it says what both say merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lmforge.errors import InputError, LmforgeError
from lmforge.formats import peft as exporter
from lmforge.formats.export import export
from lmforge.formats.load import load_any
from lmforge.formats.registry import FORMATS
from lmforge.recipe import Lora
from lmforge.train.adapters import adapt, adapter_tensors, write_adapter
from tests.formats.exporting import GPT2, LAPTOP, LLAMA, small

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
NETWORKS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "laptop": LAPTOP,
    "own": {"ngram_rows": 20},
}


def adapter(folder: Path, **changes: Any) -> Path:
    """An adapter of rank 3, with its base beside it."""
    loaded = small(**changes)
    FORMATS["native"].write(loaded, folder / "base")
    lora = Lora(rank=3, alpha=5.0)
    adapt(loaded.model, lora, seed=1)
    tensors = adapter_tensors(loaded.model)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in tensors.items():
        if name.endswith("adapter_b"):
            tensor.normal_(std=0.1, generator=generator)
    write_adapter(folder / "adapter", tensors, folder / "base", lora)
    return folder / "adapter"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_adapter_loads_on_the_exported_base(tmp_path: Path, name: str) -> None:
    loaded = load_any(adapter(tmp_path, **NETWORKS[name]))
    report = export(loaded, tmp_path / "out", "peft")
    assert report["logits_difference"] < 1e-4
    assert report["greedy_tokens_equal"] == 32
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base", trust_remote_code=True)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        plain = base(tokens).logits
        model = peft.PeftModel.from_pretrained(base, tmp_path / "out")
        ours = loaded.model(tokens)
        assert torch.allclose(model(tokens).logits, ours, atol=1e-4)
        assert torch.allclose(model.merge_and_unload()(tokens).logits, ours, atol=1e-4)
    assert float((plain - ours).abs().max()) > 0.05
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "out" / "base")
    assert settings["r"] == 3
    assert settings["lora_alpha"] == pytest.approx(5.0)


def test_one_matrix_of_ours_is_several_targets_of_theirs(tmp_path: Path) -> None:
    export(load_any(adapter(tmp_path, **LLAMA)), tmp_path / "out", "peft")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["target_modules"] == [
        "mlp.down_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    at = "base_model.model.model.layers.0.self_attn"
    assert torch.equal(tensors[f"{at}.q_proj.lora_A.weight"], tensors[f"{at}.k_proj.lora_A.weight"])
    assert tensors[f"{at}.q_proj.lora_B.weight"].shape == (32, 3)
    assert tensors[f"{at}.k_proj.lora_B.weight"].shape == (16, 3)


def test_a_base_that_was_exported_before_is_used(tmp_path: Path) -> None:
    folder = adapter(tmp_path, **LLAMA)
    export(load_any(tmp_path / "base"), tmp_path / "exported", "transformers")
    report = export(load_any(folder), tmp_path / "out", "peft", base=tmp_path / "exported")
    assert report["base"] == str(tmp_path / "exported")
    assert not (tmp_path / "out" / "base").exists()
    export(small(seed=5, **LLAMA), tmp_path / "another", "transformers")
    with pytest.raises(LmforgeError, match="logits differ"):
        export(load_any(folder), tmp_path / "wrong", "peft", base=tmp_path / "another")
    assert not (tmp_path / "wrong").exists()


def test_rows_that_are_turned_the_wrong_way_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_any(adapter(tmp_path, **LLAMA))
    right = exporter._rows
    monkeypatch.setattr(exporter, "_rows", lambda *given: [(name, b.flip(0)) for name, b in right(*given)])
    with pytest.raises(LmforgeError, match="logits differ"):
        export(loaded, tmp_path / "out", "peft")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    FORMATS["native"].write(small(), tmp_path / "model")
    with pytest.raises(InputError, match="no adapter"):
        export(load_any(tmp_path / "model"), tmp_path / "out", "peft")
