"""Any model → the same network with its weights as floating-point numbers, which is what other programs take.

Layers that hold their matrix in another form (8-bit numbers with a scale for each row) give it as it is multiplied;
what they do to activations is left behind.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.formats.loaded import LoadedModel
from lmforge.model.gpt import GPT


def plain(loaded: LoadedModel) -> tuple[LoadedModel, list[str]]:
    """The model with floating-point weights, and the names of the matrices that were not so: `loaded` itself where all
    are.

    Raises:
        InputError: a layer's matrix cannot be had as numbers (names it).
    """
    tensors: dict[str, Tensor] = {}
    changed = []
    own = dict(loaded.model.named_parameters(remove_duplicate=False)) | dict(loaded.model.named_buffers())
    with torch.device("meta"):
        network = GPT(loaded.config)
    wanted = network.state_dict()
    for name in wanted:
        tensor = own.get(name)
        if tensor is not None and tensor.is_floating_point() and tensor.shape == wanted[name].shape:
            tensors[name] = tensor.detach()
            continue
        owner, _, part = name.rpartition(".")
        dense = _dense(loaded.model.get_submodule(owner)) if part == "weight" else None
        if dense is None or dense.shape != wanted[name].shape:
            raise InputError(
                f"{loaded.directory}: {name} cannot be had as numbers ({', '.join(loaded.methods) or 'unknown form'}); "
                "export the model that it was compressed from"
            )
        if not (loaded.config.tied and name == "head.weight"):
            changed.append(name)
        tensors[name] = dense
    if not changed:
        return loaded, []
    if loaded.config.tied:
        tensors["head.weight"] = tensors["embed.weight"]
    network.load_state_dict(tensors, assign=True)
    network.rotations, network.local_rotations = loaded.model.rotations, loaded.model.local_rotations
    if loaded.config.tied:
        assert network.head is not None
        assert network.embed is not None
        network.head.weight = network.embed.weight
    return dataclasses.replace(loaded, model=network.eval(), compression=()), changed


@torch.no_grad()
def _dense(module: nn.Module) -> Tensor | None:
    """The matrix of a layer that holds it as whole numbers and a scale for each row, or gives it itself."""
    if hasattr(module, "dense_weight"):
        return module.dense_weight()  # type: ignore[no-any-return, operator]
    if hasattr(module, "unpacked"):
        weight, scale = module.unpacked()  # type: ignore[operator]
    else:
        weight, scale = getattr(module, "weight", None), getattr(module, "scale", None)
    if not (
        isinstance(weight, Tensor) and isinstance(scale, Tensor) and weight.ndim == 2 and len(scale) == len(weight)
    ):
        return None
    return weight.float() * scale.float()[:, None]
