"""The formats that models are read from and written to, and the methods that restore compressed modules.

A format is one class in one file, registered in one line: CONTRIBUTING.md shows one under "Adding a format".
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.model.gpt import GPT
from lmforge.recipe.registry import COMPRESSION_METHODS
from lmforge.registry import Registry


class Format(abc.ABC):
    """A way in which models lie on disk, in a file or in a folder."""

    name: ClassVar[str]

    @abc.abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether `path` is of this format, by its names and first bytes. Damage is for `read` to tell."""

    @abc.abstractmethod
    def read(self, path: Path, verify: bool = True) -> LoadedModel:
        """The model, with the tokenizer that it was trained with. `verify`: check files against their checksums.

        Raises:
            InputError: a file is missing, altered or holds what cannot be read (names it).
        """

    def write(self, loaded: LoadedModel, path: Path) -> None:
        """Write a model so that `read` gives it back. By default a format is only read.

        Raises:
            InputError: the format cannot be written, or cannot hold this model.
        """
        raise InputError(f"{path}: the format {self.name!r} is only read; write 'native'")


class Restorer(Protocol):
    """What loading needs of a compression method: see `lmforge.compress.method.Method`."""

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """Rebuild the structure that the method left, for `tensors` to fill."""


# in the order in which they are asked whether a path is theirs
FORMATS: Registry[Format] = Registry(
    "format",
    (
        "lmforge.formats.native",
        "lmforge.formats.exported",
        "lmforge.formats.transformers",
        "lmforge.formats.gguf",
        "lmforge.train.adapters",
    ),
)
RESTORERS: Registry[Restorer] = Registry("compression method", COMPRESSION_METHODS)
