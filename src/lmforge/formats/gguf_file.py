"""A GGUF file: what stands in its head, and its tensors, one at a time.

    magic "GGUF", version │ metadata: key, type, value … │ tensors: name, shape, type, offset … │ padding │ data

The head is read here: the `gguf` package takes seconds for the strings of a vocabulary, and tells a cut file by a
traceback. The blocks of the types are its own: `gguf.quants` dequantises them. Layout: "GGUF", ggml's docs/gguf.md,
versions 2 and 3.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmforge.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
INSTALL = "pip install 'lmforge[gguf]'"
READABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
MOST_DIMENSIONS = 4
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: shape as torch has it, the name of its type, the first of its bytes in the file and their
    number."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def _shown(name: str) -> str:
    """A name as a file has it, fit for one line: a damaged file may hold anything there."""
    return name.encode("unicode_escape").decode()[:80]


class GgufFile:
    """The head of a GGUF file, read: `metadata` by key, `tensors` by name. No more than one tensor is ever held."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where it is no GGUF file, cut short, of another version, or one part of several."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = path.stat().st_size
                head = _Head(path, file, self.size)
                self.metadata, stated = head.read()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a GGUF file") from error
        parts = self.metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise InputError(
                f"{path}: one of {parts} files of a model; join them first (llama-gguf-split --merge), and give that"
            )
        self.tensors = {info.name: info for info in stated}

    @property
    def architecture(self) -> str:
        """What its metadata call the network."""
        return str(self.metadata.get("general.architecture", ""))

    def tensor(self, name: str, first: int = 0, rows: int | None = None) -> Tensor:
        """A tensor in float32, as the `gguf` package dequantises it; with `rows` only so many of its rows, from `first`
        on.

        Raises:
            InputError: it is not there, of a type that cannot be read, or holds what is no number.
        """
        info = self.tensors.get(name)
        if info is None:
            raise InputError(f"{self.path}: no tensor {_shown(name)}; is the file complete?")
        if info.type not in READABLE:
            raise InputError(
                f"{self.path}: {_shown(name)} is of type {info.type}, which cannot be read; there are "
                f"{', '.join(READABLE)}: "
                "quantise the model to one of these"
            )
        gguf = gguf_package()
        kind = gguf.GGMLQuantizationType[info.type]
        width = info.shape[-1] if info.shape else 1
        there = info.elements // max(1, width)
        row_size = info.size // max(1, there)
        rows = there if rows is None else min(rows, there - first)
        start = info.offset + first * row_size
        data: NDArray[np.uint8] = np.fromfile(self.path, dtype=np.uint8, count=rows * row_size, offset=start)
        if info.type == "F32":
            values = data.view("<f4")
        elif info.type == "F16":
            values = data.view("<f2").astype(np.float32)
        else:
            values = gguf.quants.dequantize(data.reshape(rows, -1), kind)
        shape = info.shape if rows == there else (rows, width)
        result = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).reshape(shape))
        if not bool(torch.isfinite(result).all()):
            raise InputError(
                f"{self.path}: {_shown(name)} holds values that are no numbers (NaN or infinity); the file is damaged, "
                "or its "
                "training had diverged: get it again"
            )
        return result

    def rows(self, name: str) -> Tensor:
        """The bytes of a tensor's rows as they are (O, bytes of a row)."""
        info = self.tensors[name]
        data: NDArray[np.uint8] = np.fromfile(self.path, dtype=np.uint8, count=info.size, offset=info.offset)
        return torch.from_numpy(data.reshape(info.elements // info.shape[-1], -1))


def gguf_package() -> Any:
    """The package `gguf`.

    Raises:
        InputError: it is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise InputError(f"GGUF files need the package gguf; install it: {INSTALL}") from error
    return gguf


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file by its first bytes or its name."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class _Head:
    """Reads the head of a file, part by part, and knows where it would end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def read(self) -> tuple[dict[str, Any], list[TensorInfo]]:
        """(the metadata; the tensors in the order of the file)."""
        magic = self.file.read(len(MAGIC))
        if magic != MAGIC:
            raise InputError(f"{self.path}: not a GGUF file: it begins with {magic!r}, not {MAGIC!r}; get it again")
        (version,) = self._numbers("I", 1)
        if version not in VERSIONS:
            swapped = int.from_bytes(int(version).to_bytes(4, "little"), "big")
            cause = "big-endian" if swapped in VERSIONS else f"version {version}"
            raise InputError(f"{self.path}: a GGUF file of {cause}; versions 2 and 3, little-endian, are read")
        tensors, keys = self._numbers("Q", 2)
        metadata: dict[str, Any] = {}
        for _ in range(self._bounded(keys, 13)):
            key = self._string()
            (kind,) = self._numbers("I", 1)
            metadata[key] = self._value(kind, key)
        stated = [self._tensor() for _ in range(self._bounded(tensors, 24))]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise InputError(f"{self.path}: general.alignment = {alignment!r}; the file is damaged, get it again")
        start = -(-self.file.tell() // alignment) * alignment
        placed = [dataclasses.replace(info, offset=info.offset + start) for info in stated]
        for info in placed:
            if info.offset + info.size > self.size:
                raise self._cut(f"{_shown(info.name)} would end at byte {info.offset + info.size:,}")
        return metadata, placed

    def _tensor(self) -> TensorInfo:
        name = self._string()
        (dimensions,) = self._numbers("I", 1)
        if dimensions > MOST_DIMENSIONS:
            raise InputError(
                f"{self.path}: {_shown(name)} has {dimensions} dimensions; the file is damaged, get it again"
            )
        shape = tuple(int(each) for each in reversed(self._numbers("Q", dimensions)))
        kind, offset = (*self._numbers("I", 1), *self._numbers("Q", 1))
        gguf = gguf_package()
        try:
            known = gguf.GGMLQuantizationType(kind)
        except ValueError as error:
            raise InputError(
                f"{self.path}: {_shown(name)} is of type {kind}, which no type known here is; update the package gguf"
            ) from error
        block, size = gguf.GGML_QUANT_SIZES[known]
        if shape and shape[-1] % block:
            raise InputError(
                f"{self.path}: {_shown(name)} has rows of {shape[-1]}, no multiple of {known.name}'s {block}; the file "
                "is "
                "damaged, get it again"
            )
        return TensorInfo(name, shape, known.name, int(offset), math.prod(shape) // block * size)

    def _value(self, kind: int, key: str) -> Any:
        if kind in _NUMBERS:
            return self._numbers(_NUMBERS[kind], 1)[0]
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            (inner,) = self._numbers("I", 1)
            (count,) = self._numbers("Q", 1)
            if inner == _STRING:
                return self._strings(count)
            if inner in _NUMBERS:
                return list(self._numbers(_NUMBERS[inner], self._bounded(count, struct.calcsize(_NUMBERS[inner]))))
            if inner == _ARRAY:
                return [self._value(inner, key) for _ in range(self._bounded(count, 12))]
        raise InputError(f"{self.path}: {_shown(key)} is of the unknown type {kind}; the file is damaged, get it again")

    def _string(self) -> str:
        (length,) = self._numbers("Q", 1)
        return self._bytes(length).decode("utf-8", "replace")

    def _strings(self, count: int) -> list[str]:
        return [self._string() for _ in range(self._bounded(count, 8))]

    def _bounded(self, count: int, least: int) -> int:
        """A number of things of at least so many bytes each."""
        if count * least > self.size - self.file.tell():
            raise self._cut(f"{count:,} entries are said to follow byte {self.file.tell():,}")
        return count

    def _numbers(self, code: str, count: int) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise self._cut(f"{count:,} bytes are said to follow byte {self.file.tell():,}")
        return self.file.read(count)

    def _cut(self, where: str) -> InputError:
        return InputError(f"{self.path}: cut short: the file has {self.size:,} bytes, and {where}; get it again")


def string_of(metadata: Mapping[str, Any], key: str) -> str:
    """A text of the metadata; "" where there is none."""
    value = metadata.get(key)
    return value if isinstance(value, str) else ""
