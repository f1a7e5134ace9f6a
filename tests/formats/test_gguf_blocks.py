"""The blocks of a file are kept: the same numbers, multiplied as integers, saved and served like any other model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.formats.gguf import read_gguf
from lmforge.formats.gguf_blocks import TYPES, taken_apart
from lmforge.formats.load import load_any
from lmforge.formats.registry import FORMATS
from lmforge.kernels.build import library
from tests.formats.ggufs import gguf, model

package = pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


@pytest.mark.parametrize("kind", TYPES)
def test_a_block_holds_the_numbers_that_the_package_says(kind: str) -> None:
    """With the reader of the package gguf as the other opinion."""
    quants = package.quants
    values = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).numpy()
    data = quants.quantize(values, package.GGMLQuantizationType[kind])
    codes, scale, least = taken_apart(kind, torch.from_numpy(data).unflatten(1, (2, -1)))
    bits, offset = TYPES[kind]
    assert int(codes.max()) < 2**bits
    wide = scale.float().repeat_interleave(32, 1)
    if least is None:
        dense = (codes.float() - float(offset)) * wide
    else:
        dense = codes.float() * wide + least.float().repeat_interleave(32, 1)
    assert torch.equal(dense, torch.from_numpy(quants.dequantize(data, package.GGMLQuantizationType[kind])))


@pytest.mark.parametrize(("name", "kind"), [("llama", "Q4_1"), ("qwen2", "Q8_0"), ("gpt2", "Q4_0")])
def test_a_file_is_served_without_further_loss(tmp_path: Path, name: str, kind: str) -> None:
    file = gguf(tmp_path / "m.gguf", model(name), kind)
    floats, blocks = read_gguf(file), read_gguf(file, blocks=True)
    layers = blocks.compression[0]["layers"]
    assert layers
    for layer in layers:
        kept = blocks.model.get_submodule(layer)
        assert torch.equal(kept.dense(), floats.model.get_submodule(layer).weight)  # type: ignore[operator]
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected, reached = floats.model(ids), blocks.model(ids)
    assert float((reached - expected).norm() / expected.norm()) < (0.05 if library() else 1e-5)
    FORMATS["native"].write(blocks, tmp_path / "kept")
    with torch.no_grad():
        assert torch.equal(load_any(tmp_path / "kept").model(ids), reached)


def test_a_file_of_floats_stays_one(tmp_path: Path) -> None:
    loaded = read_gguf(gguf(tmp_path / "m.gguf", model()), blocks=True)
    assert loaded.compression == ()
