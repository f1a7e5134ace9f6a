"""import(export(x)) is x, to the bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lmforge.compress.quantize import quantize
from lmforge.errors import InputError
from lmforge.formats.export import export
from lmforge.formats.export_transformers import TransformersExport
from lmforge.formats.load import detect, load_any
from lmforge.formats.loaded import LoadedModel
from lmforge.formats.plain import plain
from lmforge.formats.registry import FORMATS
from lmforge.formats.transformers import import_model
from lmforge.record import hash_file
from tests.formats.exporting import GPT2, GPU, LAPTOP, LLAMA, network, small
from tests.formats.test_export_tokenizer import of_others

pytest.importorskip("transformers")
NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "laptop": LAPTOP,
    "gpu": GPU,
    "llama": LLAMA,
    "gpt2": GPT2,
    "gpt2 without biases": {**GPT2, "biases": False},
    "qwen3": {"activation": "swiglu", "qk_norm": True},
    "mistral": {"activation": "swiglu", "attention": ("window",), "window": 8},
    "own: experts": {"experts": 4},
    "own: buckets": {"attention": ("lsh", "linear"), "kv_heads": 4, "ngram_rows": 20},
}


def written(loaded: LoadedModel, path: Path, **changes: Any) -> Path:
    """Exported without the proof, which other tests look at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    TransformersExport().write(loaded, path)
    if changes:
        config = path / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return path


def weights_hash(loaded: LoadedModel, path: Path) -> str:
    FORMATS["native"].write(loaded, path)
    return hash_file(path / "model.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_weights_and_shape_come_back(tmp_path: Path, name: str) -> None:
    loaded = dataclasses.replace(small(**NETWORKS[name]), notes={"licence": "CC0"})
    before = weights_hash(loaded, tmp_path / "before")
    folder = written(loaded, tmp_path / "exported")
    assert detect(folder) is FORMATS["exported"]
    import_model(folder, tmp_path / "after")
    again = load_any(tmp_path / "after")
    assert hash_file(tmp_path / "after" / "model.safetensors") == before
    assert again.config == loaded.config
    assert again.tokenizer.sha256 == loaded.tokenizer.sha256
    assert again.notes == {"licence": "CC0"}


@settings(max_examples=25)
@given(st.data())
def test_any_network_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever it is exported as, its shape and every number."""
    options: dict[str, list[Any]] = {
        "norm": ["layernorm", "rmsnorm"],
        "activation": ["relu", "relu2", "gelu", "gelu_tanh", "swiglu", "geglu"],
        "positions": ["rope", "learned", "none"],
        "biases": [False, True],
        "qkv_biases": [None, True],
        "qk_norm": [False, True],
        "tied": [True, False],
        "kv_heads": [1, 4],
        "attention": [("full",), ("window", "full"), ("strided",), ("linear",)],
        "window": [6, 100],
        "norm_eps": [None, 1e-5],
        "norm_placement": ["pre", "post", "both"],
        "parallel_residual": [False, True],
        "head_dim": [0, 16],
        "rotary_fraction": [1.0, 0.5],
        "experts": [0, 2],
    }
    changes = {name: data.draw(st.sampled_from(values), name) for name, values in options.items()}
    loaded = small(**changes)
    again = load_any(written(loaded, tmp_path_factory.mktemp("any") / "exported"))
    assert again.config == loaded.config
    ours, theirs = loaded.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_comes_back(tmp_path: Path, tiny_run: Path) -> None:
    export(load_any(tiny_run, "model"), tmp_path / "exported", "transformers")
    import_model(tmp_path / "exported", tmp_path / "after")
    assert hash_file(tmp_path / "after" / "model.safetensors") == hash_file(tiny_run / "model" / "model.safetensors")


def test_a_quantised_model_comes_back_as_its_numbers(tmp_path: Path) -> None:
    loaded = small(**LAPTOP)
    numbers, _ = plain(dataclasses.replace(loaded, model=quantize(loaded.model)[0]))
    export(numbers, tmp_path / "exported", "transformers")
    again = load_any(tmp_path / "exported")
    assert weights_hash(again, tmp_path / "a") == weights_hash(numbers, tmp_path / "b")


def test_a_tokenizer_of_others_is_imported(tmp_path: Path) -> None:
    tokenizer = of_others()
    loaded = LoadedModel(network(vocab_size=tokenizer.vocab_size), tokenizer, "small", Path("small"))
    again = load_any(written(loaded, tmp_path / "exported"))
    assert again.tokenizer.encode("the king") == tokenizer.encode("the king")
    assert again.tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["laptop", "gpt2 without biases"])
def test_added_zeros_that_were_trained_on_are_weights(tmp_path: Path, name: str) -> None:
    folder = written(small(**NETWORKS[name]), tmp_path / "exported")
    tensors = load_file(folder / "model.safetensors")
    bias = next(name for name in tensors if name.endswith(("c_attn.bias", "dense.bias")))
    save_file(tensors | {bias: torch.ones_like(tensors[bias])}, folder / "model.safetensors", {"format": "pt"})
    if name == "laptop":  # an architecture that is only written
        with pytest.raises(InputError, match="persimmon"):
            load_any(folder)
    else:
        assert load_any(folder).config.biases


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    folder = written(small(), tmp_path / "exported")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"no tensor model\.norm\.weight"):
        load_any(folder)
    folder = written(small(), tmp_path / "other", lmforge={"architecture": {"no_such": 1}})
    with pytest.raises(InputError, match="not a network this version reads"):
        load_any(folder)
