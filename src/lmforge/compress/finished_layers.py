"""Layers that a step has finished, kept in its folder, so that one that was killed in the middle does not do them
again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from lmforge.record import hash_json, write_atomic

Tensors = dict[str, Tensor]


class FinishedLayers:
    """What `make` gave for a layer, by name. `kept`: units that stay as they are: without them the others come out
    otherwise. A file is there only when it is whole."""

    def __init__(self, folder: Path, kept: Collection[str] = (), *about: object) -> None:
        self.folder = folder / f"layers-{hash_json([sorted(kept), *about])[:12]}"

    def __call__(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """The tensors of layer `name`: those that were kept, or what `make` gives now.

        Raises:
            InputError: no permission to write there.
            LmforgeError: the disk is full or failing.
        """
        file = self.folder / f"{name}.safetensors"
        if file.is_file():
            return load(file.read_bytes())
        made = make()
        write_atomic(file, save({key: tensor.contiguous() for key, tensor in made.items()}))
        return made
