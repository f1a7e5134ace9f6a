"""Networks whose layers have shapes of their own: a layer put back as it was, a matrix as a thin pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from torch import Tensor

from lmforge.compress.masks import dense_tensors, mask_linear, masked
from lmforge.model.gpt import GPT, LayerShape


def rebuilt(
    model: GPT, shapes: Mapping[int, LayerShape], tensors: Mapping[str, Tensor], masks: Mapping[str, str]
) -> GPT:
    """A network of plain modules like `model`, layers `shapes` in new shapes, filled with `tensors` where these have a
    name and with those of `model` elsewhere; the layers `masks` {name: pattern} keep their zeros."""
    config = model.config
    every = tuple(shapes.get(layer, config.shape_of(layer)) for layer in range(config.layers))
    new = GPT(dataclasses.replace(config, layer_shapes=every))
    old = dense_tensors(model)
    new.load_state_dict({name: tensors[name] if name in tensors else old[name] for name in new.state_dict()})
    for name, pattern in masks.items():
        mask_linear(new, name, pattern=pattern)
    return new.eval().requires_grad_(False)


def put_back_layers(result: GPT, before: GPT, layers: Collection[int]) -> GPT:
    """`result` with some layers as they are in `before`, of which it has every layer."""
    names = tuple(f"blocks.{layer}." for layer in layers)
    old = {name: tensor for name, tensor in dense_tensors(before).items() if name.startswith(names)}
    masks = {name: kind for name, kind in masked(result).items() if not name.startswith(names)}
    masks |= {name: kind for name, kind in masked(before).items() if name.startswith(names)}
    return rebuilt(result, {layer: before.config.shape_of(layer) for layer in layers}, old, masks)
