"""Sizes by layer, and a noise scale that is known."""

from __future__ import annotations

import pytest
import torch

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.parallel.data_parallel import DataParallel
from lmforge.parallel.mesh import Mesh
from lmforge.train.statistics import Activations, NoiseScale, layer_of, weights_and_gradients


def test_sizes_by_layer() -> None:
    model = GPT(GPTConfig(vocab_size=20, context=8, layers=2, d_model=8, heads=2, kv_heads=2, d_ff=16))
    model.initialise(0)
    x = torch.arange(8)[None]
    with Activations(model) as activations:
        model.loss(x, x).backward()
    assert set(activations.by_layer) == {"embed", "blocks.0", "blocks.1", "norm"}
    assert activations.by_layer["norm"]["rms"] == pytest.approx(1.0, abs=0.02)
    assert all(each["largest"] >= each["rms"] > 0 for each in activations.by_layer.values())
    sizes = weights_and_gradients(model, DataParallel(Mesh(0, 1, torch.device("cpu"))))
    assert set(sizes) == {"embed", "blocks.0", "blocks.1", "norm"}
    assert sizes["embed"]["weights"] == pytest.approx(float(model.embed.weight.square().mean().sqrt()), rel=1e-5)
    assert sizes["blocks.1"]["gradients"] > 0
    activations.by_layer.clear()
    model.loss(x, x)
    assert not activations.by_layer  # it looks only while it is entered


def test_layers_of_parameters() -> None:
    assert [layer_of(n) for n in ("blocks.3.ff.up.weight", "embed.weight", "ngrams.bigram.weight")] == [
        "blocks.3",
        "embed",
        "ngrams",
    ]


def test_the_noise_scale_of_a_known_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, deviation, width = 0.5, 3.0, 200  # |G|² = 50, tr Σ = 1800: a noise scale of 36
    noise = NoiseScale()
    assert noise.tokens is None
    for _ in range(300):
        each = signal + deviation * torch.randn(64, width, generator=generator)
        noise.add(8, float(each[:8].mean(0).square().sum()), 64, float(each.mean(0).square().sum()))
    again = NoiseScale()
    again.load_state_dict(noise.state_dict())
    assert again.tokens == pytest.approx(36, rel=0.3)
