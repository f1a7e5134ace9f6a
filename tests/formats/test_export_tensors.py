"""Files that safetensors reads, written with one tensor in memory."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lmforge.formats.export_tensors import DTYPES, LazyTensor, write_shard, write_tensors


@given(st.data())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    given_ = data.draw(st.lists(st.tuples(shapes, st.sampled_from(list(DTYPES))), min_size=1, max_size=6))
    tensors = {
        f"t{n}": torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        for n, (shape, dtype) in enumerate(given_)
    }
    folder = tmp_path_factory.mktemp("files")
    limit = data.draw(st.integers(1, 200))
    names = write_tensors(folder, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, limit)
    back: dict[str, Tensor] = {}
    for name in names:
        part = load_file(folder / name)
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= limit
        back |= part
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    if len(names) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(tensors)
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive, most = set[int](), 0

    def make(number: int) -> Tensor:
        nonlocal most
        tensor = torch.full((1000,), float(number))
        alive.add(number)
        weakref.finalize(tensor, alive.discard, number)
        most = max(most, len(alive))
        return tensor

    lazy = {str(n): LazyTensor((1000,), torch.float32, lambda n=n: make(n)) for n in range(50)}  # type: ignore[misc]
    assert len(write_tensors(tmp_path, lazy, limit=40_000)) == 5
    assert most == 1


def test_views_and_changes(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    lazy = LazyTensor.of(matrix).then(lambda x: x.t()[1:].to(torch.bfloat16))
    assert lazy.shape == (3, 3)
    assert lazy.nbytes == 18
    write_shard(tmp_path / "x.safetensors", {"a": lazy})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], matrix.t()[1:].to(torch.bfloat16))
