"""The weights of a checkpoint of `transformers`: safetensors or pickled tensors, in one file or many with an index."""

from __future__ import annotations

import json
import pickle
from collections.abc import KeysView, Set
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmforge.errors import InputError

ONE_FILE = ("model.safetensors", "pytorch_model.bin")
READ_AT_ONCE = 1 << 26  # bytes


class Weights(Protocol):
    """Tensors by name, from wherever they are; `source` is what an error names."""

    source: Path

    @property
    def names(self) -> Set[str]:
        """Of all tensors."""

    def read(self, name: str) -> Tensor:
        """One tensor."""


class WeightFiles:
    """Tensors by name, read when they are asked for.

    Of pickles only tensors are read (`weights_only`): a file that holds code to run is refused. Files are mapped into
    memory where their format allows; one of which much has been read is mapped anew, so that what was read is let go.
    """

    def __init__(self, source: Path) -> None:
        """The files in the folder `source`: safetensors if there are any.

        Raises:
            InputError: there are none, or one is missing, damaged, or holds something else.
        """
        self.source = source
        self._file_of: dict[str, Path] = {}
        self._path: Path | None = None  # of the one that is open
        self._reader: Any = None
        self._since = 0  # bytes read of it
        for file in _files(source):
            self._file_of |= dict.fromkeys(self._open(source / file).keys(), source / file)

    @property
    def names(self) -> KeysView[str]:
        """Of all tensors."""
        return self._file_of.keys()

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, as it was saved. It is to be let go before the next one is read."""
        again = self._path != self._file_of[name] or self._since > READ_AT_ONCE
        reader = self._open(self._file_of[name]) if again else self._reader
        tensor: Tensor = reader[name] if isinstance(reader, dict) else reader.get_tensor(name)
        self._since += tensor.nbytes
        return tensor

    def _open(self, path: Path) -> Any:
        self._reader = None  # before the next one takes its place
        self._reader = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
        self._path, self._since = path, 0
        return self._reader


def _safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not readable as safetensors ({error}); convert the weights with save_pretrained"
        ) from error


def _files(source: Path) -> list[str]:
    for name in ONE_FILE:
        index = source / f"{name}.index.json"
        if index.is_file():
            try:
                return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{index}: not an index of weights ({error!r}); get the file again") from error
        if (source / name).is_file():
            return [name]
    raise InputError(f"{source}: no weights; {' or '.join(ONE_FILE)}, or an index of several, should be there")


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of before torch 1.6, which cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: not weights alone, and nothing else is read from a pickle ({said[:120]}); get the model as "
            "safetensors"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: a pickle that holds no tensors by name; get the model as safetensors")
    return content
