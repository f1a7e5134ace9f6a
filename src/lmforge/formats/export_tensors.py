"""Tensors into safetensors files one at a time, so that writing N bytes takes one tensor's memory.

The format (github.com/huggingface/safetensors, "Format"): 8 bytes, the length of the header, little-endian; the header,
JSON of each tensor's dtype, shape and place; the bytes of the tensors one after another. What is written in several
files has `model.safetensors.index.json`, as `transformers` reads it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

SHARD_BYTES = 5_000_000_000  # of one file, at most, unless one tensor alone is larger
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made when it is written: its shape, its type, and what makes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """One that is there already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def then(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """What `change` makes of it. Its shape is found without making it."""
        with torch.device("meta"):
            probe = change(torch.empty(self.shape, dtype=self.dtype))
        return LazyTensor(tuple(probe.shape), probe.dtype, lambda: change(self.make()))

    @property
    def nbytes(self) -> int:
        """Its bytes in a file."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def write_tensors(folder: Path, tensors: Mapping[str, LazyTensor], limit: int = SHARD_BYTES) -> list[str]:
    """Write tensors to `folder` in files of at most `limit` bytes of numbers; the names of the files."""
    shards = list(_shards(tensors, limit))
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        place = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, {tensor: tensors[tensor] for tensor in shard})
    return names


def _shards(tensors: Mapping[str, LazyTensor], limit: int) -> Iterator[list[str]]:
    """The names that go into each file, in the order given."""
    shard: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += tensor.nbytes
    yield shard


@torch.no_grad()
def write_shard(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write one safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that numbers begin at whole 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in tensors.items():
            made = tensor.make().detach().cpu().contiguous()
            assert tuple(made.shape) == tensor.shape, name
            assert made.dtype == tensor.dtype, name
            file.write(made.reshape(-1).view(torch.uint8).numpy().data)
            del made
