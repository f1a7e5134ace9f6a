"""Adapters: they begin as nothing, merge exactly, average exactly, and belong to one base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from lmforge.errors import InputError
from lmforge.formats.native import model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Lora
from lmforge.record import atomic_directory
from lmforge.tokens.bpe import train_tokenizer
from lmforge.train.adapters import (
    Adapted,
    adapt,
    adapted_layers,
    adapter_tensors,
    averaged,
    base_of,
    hold,
    load_adapters,
    load_with_adapter,
    merged,
    write_adapter,
)

TOKENS = torch.arange(24).view(2, 12) % 257


def network(seed: int = 0, activation: str = "relu", experts: int = 0) -> GPT:
    model = GPT(
        GPTConfig(
            257,
            16,
            layers=2,
            d_model=16,
            heads=2,
            kv_heads=1,
            d_ff=32,
            activation=activation,
            biases=True,
            experts=experts,
        )
    )
    model.initialise(seed)
    return model


def trained(seed: int = 0, lora: Lora | None = None) -> GPT:
    """With adapters that do something."""
    model = network()
    adapt(model, lora or Lora(rank=3), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.adapter_b.normal_(std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_at_first_nothing_changes_and_only_adapters_are_trained(activation: str) -> None:
    model, adapted = network(activation=activation), network(activation=activation)
    adapt(adapted, Lora(rank=3), 0)
    assert torch.equal(model(TOKENS), adapted(TOKENS))
    adapted.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    assert {name for name, p in adapted.named_parameters() if p.grad is not None} == {
        n for n, _ in adapted.named_parameters() if "adapter_" in n
    }
    assert len(adapted_layers(adapted)) == 8
    assert all(isinstance(layer, torch.nn.Linear) for layer in adapted_layers(adapted).values())


def test_merged_weights_compute_the_same() -> None:
    model, plain = trained(), network()
    weights = merged(model)
    assert set(weights) == set(model_tensors(plain))
    hold(plain, weights)
    assert torch.allclose(model(TOKENS), plain(TOKENS), atol=1e-5)
    assert not torch.allclose(model(TOKENS), network()(TOKENS), atol=1e-3)
    hold(model, weights)  # its adapters then add nothing
    assert torch.allclose(model(TOKENS), plain(TOKENS), atol=1e-6)


def test_the_mean_of_merged_models_is_one_adapter() -> None:
    models = [trained(seed) for seed in (1, 2, 3)]
    mean = {name: sum(merged(model)[name] for model in models) / 3 for name in merged(models[0])}
    joined = averaged([adapter_tensors(model) for model in models])
    assert all(tensor.shape[0 if name.endswith("_a") else 1] == 9 for name, tensor in joined.items())
    result = merged(models[0], joined)
    assert all(torch.allclose(result[name], mean[name], atol=1e-6) for name in mean)


def test_targets_rank_and_alpha() -> None:
    model = network()
    adapt(model, Lora(rank=2, alpha=1, targets=("attention.out", "ff.down")), 0)
    assert {name.split(".", 2)[2] for name in adapted_layers(model)} == {"attention.out", "ff.down"}
    assert all(layer.adapter_a.shape[0] == 2 and layer.scale == 0.5 for layer in adapted_layers(model).values())
    assert Lora(rank=4).scale == 2
    with pytest.raises(
        InputError,
        match=r"lora\.targets: ff\.up is no matrix of this network's layers; it has attention\.qkv, attention\.out",
    ):
        adapt(network(experts=2), Lora(), 0)


def test_an_adapter_of_a_layer_computes_equation_3() -> None:
    linear = torch.nn.Linear(5, 7)
    layer = Adapted(linear, 2, 0.5, torch.Generator().manual_seed(0))
    x = torch.randn(3, 5)
    with torch.no_grad():
        layer.adapter_b.normal_()
    expected = x @ (linear.weight + 0.5 * layer.adapter_b @ layer.adapter_a).T + linear.bias
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_saved_alone_and_merged_again(tmp_path: Path) -> None:
    train_tokenizer([], 257).save(tmp_path / "tokenizer.json")
    for name, seed in (("base", 0), ("other", 1)):
        model = network(seed)
        with atomic_directory(tmp_path / name) as directory:
            write_model(directory, model.config, model_tensors(model), tmp_path / "tokenizer.json")
    model = trained()
    write_adapter(tmp_path / "adapter", adapter_tensors(model), tmp_path / "base", Lora(rank=3))
    again = load_with_adapter(tmp_path / "adapter")
    assert torch.allclose(again(TOKENS), model(TOKENS), atol=1e-5)
    assert (
        sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
        < 0.5 * (tmp_path / "base" / "model.safetensors").stat().st_size
    )
    (tmp_path / "base").rename(tmp_path / "moved")
    (tmp_path / "other").rename(tmp_path / "base")
    assert torch.allclose(load_with_adapter(tmp_path / "adapter")(TOKENS), again(TOKENS))  # found beside the adapter
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(
        InputError, match=r"an adapter of a model with SHA-256 [0-9a-f]{12}…, which is .*base has [0-9a-f]{12}…; put"
    ):
        load_with_adapter(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError, match=r"which is neither in .*base nor beside the adapter or its run; put it back"):
        load_with_adapter(tmp_path / "adapter")


def test_adapters_of_another_rank_are_refused() -> None:
    with pytest.raises(InputError, match=r"adapters are of another rank or of other layers than finetune\.lora"):
        load_adapters(trained(), adapter_tensors(trained(lora=Lora(rank=2))))


def saved(seed: int, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    train_tokenizer([], 257).save(directory.parent / "tokenizer.json")
    model = network(seed)
    with atomic_directory(directory) as folder:
        write_model(folder, model.config, model_tensors(model), directory.parent / "tokenizer.json")


def saved_with_adapter(folder: Path) -> tuple[Path, Path]:
    """A base in a run of its own, and an adapter of it in the model of another."""
    base = folder / "runs" / "base" / "model"
    saved(1, base)
    model = network(1)
    adapt(model, Lora(rank=2), 0)
    out = folder / "runs" / "fine" / "model" / "adapter"
    write_adapter(out, adapter_tensors(model), base, Lora(rank=2))
    return base, out


def test_a_base_is_known_by_its_weights_wherever_it_went(tmp_path: Path) -> None:
    base, adapter = saved_with_adapter(tmp_path)
    assert base_of(adapter) == base
    moved = tmp_path / "elsewhere"
    (tmp_path / "runs").rename(moved)  # both together
    adapter = moved / "fine" / "model" / "adapter"
    assert base_of(adapter) == moved / "base" / "model"
    (moved / "base").rename(moved / "renamed")
    assert base_of(adapter) == moved / "renamed" / "model"
    (moved / "renamed" / "model").rename(moved / "fine" / "beside")
    assert base_of(adapter) == moved / "fine" / "beside"
    load_with_adapter(adapter)


def test_another_models_weights_are_not_taken_for_the_base(tmp_path: Path) -> None:
    base, adapter = saved_with_adapter(tmp_path)
    shutil.rmtree(base)
    saved(2, base)
    with pytest.raises(InputError, match=r"an adapter of a model with SHA-256 .* which is neither in .* nor beside"):
        base_of(adapter)
