"""What transformers loads says what we say, standard wherever some published architecture computes the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmforge.compress.quantize import quantize
from lmforge.errors import InputError, LmforgeError
from lmforge.formats import export_transformers
from lmforge.formats.export import export
from lmforge.formats.export_tensors import LazyTensor, write_tensors
from lmforge.formats.load import load_any
from lmforge.model.config import network_of
from lmforge.recipe import load_recipe
from tests.formats.exporting import GPT2, GPU, LAPTOP, LLAMA, small

transformers = pytest.importorskip("transformers")
RECIPES = Path(__file__).parents[2] / "recipes"
STANDARD: dict[str, dict[str, Any]] = {
    "ArceeForCausalLM": {},
    "PersimmonForCausalLM": LAPTOP,
    "ApertusForCausalLM": GPU,
    "LlamaForCausalLM": LLAMA,
    "GPT2LMHeadModel": GPT2,
    "Qwen3ForCausalLM": {"activation": "swiglu", "qk_norm": True},
    "MistralForCausalLM": {"activation": "swiglu", "attention": ("window",), "window": 8},
    "GPTNeoXForCausalLM": {"norm": "layernorm", "activation": "gelu", "biases": True, "kv_heads": 4, "tied": False},
}
OWN: dict[str, dict[str, Any]] = {
    "model.ngram_rows": {"ngram_rows": 50},
    "model.experts": {"experts": 4, "activation": "swiglu"},
    "model.attention": {"attention": ("sparse", "full"), "window": 8, "pool": 4, "stride": 16},
    "model.residual": {"residual": "reversible"},
}


@pytest.mark.parametrize("architecture", STANDARD)
def test_as_the_standard_architecture(tmp_path: Path, architecture: str) -> None:
    loaded = small(**STANDARD[architecture])
    report = export(loaded, tmp_path / "out", "transformers")
    assert report["architecture"] == architecture
    assert report["logits_difference"] < 1e-5
    assert report["greedy_tokens_equal"] == 32
    assert not list((tmp_path / "out").glob("*.py"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [architecture]


@pytest.mark.parametrize("key", OWN)
def test_with_the_modelling_file_where_none_computes_the_same(tmp_path: Path, key: str) -> None:
    report = export(small(**OWN[key]), tmp_path / "out", "transformers")
    assert key in report["not_standard"]
    assert "\n" not in report["not_standard"]
    assert report["logits_difference"] < 1e-5
    assert report["greedy_tokens_equal"] == 32
    assert "from lmforge" not in (tmp_path / "out" / "modeling_lmforge.py").read_text()


@pytest.mark.parametrize("recipe", ["laptop", "english", "gpu"])
def test_networks_of_the_default_recipes_are_standard(recipe: str) -> None:
    how = export_transformers.standard(network_of(load_recipe(RECIPES / f"{recipe}.toml"), 4096))
    assert not isinstance(how, str), how


def test_the_network_of_the_large_recipe_says_what_makes_it_none() -> None:
    how = export_transformers.standard(network_of(load_recipe(RECIPES / "gpt4.toml"), 4096))
    assert isinstance(how, str)
    assert "model.attention" in how


def test_a_run(tmp_path: Path, tiny_run: Path) -> None:
    report = export(load_any(tiny_run), tmp_path / "out", "transformers")
    assert report["architecture"] == "ArceeForCausalLM"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    text = tokenizer("The smith", return_tensors="pt")
    answer = model.generate(**text, max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(answer[0]).startswith("The smith")


def test_8_bit_weights_are_exported_as_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    loaded = small(**LAPTOP)
    int8, _ = quantize(loaded.model)
    report = export(dataclasses.replace(loaded, model=int8), tmp_path / "out", "transformers")
    assert "fp32" in report["dequantised"]
    assert report["logits_difference"] < 1e-5


def test_what_predicts_further_tokens_is_left_out(tmp_path: Path) -> None:
    report = export(small(ahead=1, ngram_rows=20), tmp_path / "out", "transformers")
    assert "model.ahead" in report["left_out"]
    assert "ahead" not in report["not_standard"]


def test_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.image_size"):
        export(small(image_size=8, image_patch=4), tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == []


def test_tied_matrices_are_written_once_and_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = small()
    monkeypatch.setattr(
        export_transformers, "write_tensors", lambda folder, tensors: write_tensors(folder, tensors, 20_000)
    )
    export(loaded, tmp_path / "out", "transformers")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" not in index["weight_map"]
    assert len(set(index["weight_map"].values())) > 2
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert index["metadata"]["total_size"] == 4 * parameters


def test_a_wrong_weight_is_found_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, tensors: dict[str, LazyTensor]) -> None:
        name = "model.layers.1.self_attn.q_proj.weight"
        write_tensors(folder, {**tensors, name: tensors[name].then(lambda x: x.flip(0))})

    monkeypatch.setattr(export_transformers, "write_tensors", broken)
    with pytest.raises(LmforgeError, match="logits differ"):
        export(small(), tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [LAPTOP, LLAMA, GPT2])
def test_writing_takes_the_memory_of_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Bytes that are made and not the model's own, at most, while all tensors are written: those of the largest."""
    loaded = small(layers=12, **changes)
    own = {parameter.untyped_storage().data_ptr() for parameter in loaded.model.parameters()}
    made: dict[int, int] = {}
    most = 0

    def followed(lazy: LazyTensor) -> LazyTensor:
        def make() -> Tensor:
            nonlocal most
            tensor = lazy.make()
            place = tensor.untyped_storage()
            if place.data_ptr() not in own:
                made[0] = place.nbytes()
                most = max(most, made[0])
            return tensor

        return LazyTensor(lazy.shape, lazy.dtype, make)

    def write(folder: Path, tensors: dict[str, LazyTensor]) -> list[str]:
        return write_tensors(folder, {name: followed(tensor) for name, tensor in tensors.items()})

    monkeypatch.setattr(export_transformers, "write_tensors", write)
    export(loaded, tmp_path / "out", "transformers")
    largest = max(parameter.nbytes for name, parameter in loaded.model.named_parameters() if "blocks" in name)
    assert 0 < most <= largest


def test_all_tensors_are_lazy() -> None:
    """No number is copied before it is written: each of theirs is made from ours when asked for."""
    loaded = small(**LAPTOP)
    how = export_transformers.standard(loaded.config)
    assert not isinstance(how, str)
    tensors = export_transformers.their_tensors(how, export_transformers.our_tensors(loaded, how.config))
    with torch.no_grad():
        loaded.model.blocks[0].attention.qkv.weight.zero_()  # type: ignore[union-attr, operator]
    assert not tensors["model.layers.0.self_attn.query_key_value.weight"].make().any()
