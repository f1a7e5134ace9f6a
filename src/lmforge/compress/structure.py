"""A network cut out of another: some layers, heads, feed-forward units, experts and residual channels of it, with their
weights. What is left out is gone: the shapes of `LayerShape` say what stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.masks import MaskedLinear, dense_tensors, mask_linear
from lmforge.compress.sparse_input import refuse_sparse
from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig, LayerShape


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """What of a layer stays, by number in the old network: the layer itself, its groups of heads (a head of keys and
    values with the queries that use it), its experts, and of each expert (or of the one feed-forward network) the
    units."""

    layer: int
    groups: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]  # one for each kept expert, equally many; one where there are no experts
    experts: tuple[int, ...] = ()


def whole_layer(config: GPTConfig, layer: int) -> KeptLayer:
    """All of a layer."""
    shape = config.shape_of(layer)
    experts = tuple(range(shape.experts)) if shape.d_ff else ()
    width = tuple(range(shape.d_ff // max(1, shape.experts)))
    groups = tuple(range(shape.kv_heads)) if shape.heads else ()
    return KeptLayer(layer, groups, (width,) * max(1, len(experts)), experts)


def cut(model: GPT, layers: Sequence[KeptLayer], channels: Sequence[int] | None = None) -> GPT:
    """A new network of `layers`, in order, and of the residual stream's `channels` (None: all).

    Modules are plain: masks stay where matrices were masked, low-rank pairs stay pairs. What predicts tokens further
    ahead is left out; only training uses it.

    Raises:
        InputError: the model holds integers; fewer channels of a network that reads images.
    """
    refuse_frozen(model, "a network can be cut", "put the step before it")
    refuse_sparse(model, "a network can be cut")
    config = model.config
    new = GPT(cut_config(config, layers, channels))
    chosen = None if channels is None else torch.tensor(list(channels))
    old = dense_tensors(model)
    state: dict[str, Tensor] = {}
    for name, target in new.state_dict().items():
        if name.startswith("blocks."):
            _, place, rest = name.split(".", 2)
            kept = layers[int(place)]
            state[name] = _of_layer(old, rest, kept, config, chosen)
        else:
            state[name] = _along(old[name], chosen, config.d_model)
        assert state[name].shape == target.shape, (name, state[name].shape, target.shape)
    new.load_state_dict(state)
    names = {layer.layer: place for place, layer in enumerate(layers)}
    for name, module in model.named_modules():
        if isinstance(module, MaskedLinear):
            mask_linear(new, _moved(name, names, layers), pattern=module.pattern)
    return new.eval().requires_grad_(False)


def cut_config(config: GPTConfig, layers: Sequence[KeptLayer], channels: Sequence[int] | None = None) -> GPTConfig:
    """The shape of what `cut` makes.

    Raises:
        InputError: fewer channels of a network that reads images.
    """
    shapes = []
    for kept in layers:
        old = config.shape_of(kept.layer)
        groups = old.heads // max(1, old.kv_heads)
        d_ff = sum(map(len, kept.units))
        shapes.append(
            dataclasses.replace(
                old, heads=groups * len(kept.groups), kv_heads=len(kept.groups), d_ff=d_ff, experts=len(kept.experts)
            )
        )
    width = config.d_model if channels is None else len(channels)
    if width != config.d_model and config.image_size:
        raise InputError("d_model: a network that reads images keeps its channels; leave d_model out")
    pattern = tuple(config.kind_of(kept.layer) for kept in layers)
    plain = LayerShape(config.heads, config.kv_heads, config.d_ff, config.experts)
    changed = width != config.d_model or any(shape != plain for shape in shapes)
    return dataclasses.replace(
        config,
        layers=len(layers),
        d_model=width,
        head_dim=config.head_dim if width == config.d_model else config.head_width,
        attention=pattern if len(set(pattern)) > 1 else pattern[:1],
        layer_shapes=tuple(shapes) if changed else (),
        ahead=0,
    )


def _along(tensor: Tensor, chosen: Tensor | None, width: int) -> Tensor:
    """The chosen channels of a tensor outside of the blocks, whose last dimension is the residual stream."""
    return tensor if chosen is None or tensor.shape[-1] != width else tensor[..., chosen]


def _of_layer(old: dict[str, Tensor], rest: str, kept: KeptLayer, config: GPTConfig, chosen: Tensor | None) -> Tensor:
    """The part that stays of one tensor of a block; `rest`: its name in there."""
    parts = rest.split(".")
    if rest.startswith("ff.experts."):  # of expert `place` there is made what was expert `number` here
        place = int(parts[2])
        number = str(kept.experts[place])
        tensor = old[f"blocks.{kept.layer}." + ".".join([*parts[:2], number, *parts[3:]])]
        units = kept.units[place]
    else:
        tensor = old[f"blocks.{kept.layer}.{rest}"]
        units = kept.units[0]
    if rest in ("ff.router.weight", "ff.choice_bias"):
        tensor = tensor[list(kept.experts)]
    shared = rest.startswith("ff.shared.")  # as wide as `experts_shared` of the experts, whichever units they keep
    rows, columns = _kept_of(parts, kept, config, units, shared, tensor)
    first, second = _thin(parts)
    if tensor.ndim >= 2 and not rest.startswith("attention.mixer"):
        if columns is not None and not second:
            tensor = tensor[:, columns]
        if rows is not None and not first:
            tensor = tensor[rows]
    elif rows is not None and tensor.ndim == 1 and parts[-1] == "bias":
        tensor = tensor[rows]
    elif config.qk_norm_full and rest == "attention.q_norm.weight":  # of all heads together
        tensor = tensor[_heads(config.shape_of(kept.layer), kept.groups, config.head_width)]
    elif config.qk_norm_full and rest == "attention.k_norm.weight":
        tensor = tensor.view(-1, config.head_width)[list(kept.groups)].flatten()
    elif rest.startswith("attention.mixer"):
        tensor = _of_mixer(tensor, parts[-1], kept, config)
    if chosen is None:
        return tensor
    return _channels(tensor, rest, chosen, first, second)


def _thin(parts: Sequence[str]) -> tuple[bool, bool]:
    """Whether a tensor is the first (inputs to rank), or the second, of a low-rank pair."""
    return parts[-2] == "0" and parts[-3] in ("qkv", "out", "up", "down"), parts[-2] == "1" and parts[-3] in (
        "qkv",
        "out",
        "up",
        "down",
    )


def _kept_of(
    parts: Sequence[str], kept: KeptLayer, config: GPTConfig, units: tuple[int, ...], shared: bool, tensor: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns of a matrix (O,I) of the layer that stay; None: all."""
    shape = config.shape_of(kept.layer)
    if "qkv" in parts:
        return heads_rows(shape, kept.groups, config.head_width, config.kind_of(kept.layer) == "lsh"), None
    if parts[0] == "attention" and "out" in parts:
        return None, _heads(shape, kept.groups, config.head_width)
    if "up" in parts or "down" in parts:
        width = shape.d_ff // max(1, shape.experts) * (config.experts_shared if shared else 1)
        index = torch.arange(len(units) * config.experts_shared) if shared else torch.tensor(units)
        if "down" in parts:
            return None, index if parts[-1] != "bias" else None
        return (torch.cat((index, index + width)) if config.gated else index), None
    return None, None


def _heads(shape: LayerShape, groups: Sequence[int], width: int) -> Tensor:
    """Channels of the query heads of some groups."""
    size = shape.heads // max(1, shape.kv_heads) * width
    return torch.cat([torch.arange(group * size, (group + 1) * size) for group in groups])


def heads_rows(shape: LayerShape, groups: Sequence[int], width: int, shared: bool) -> Tensor:
    """Rows of `qkv` of some groups of heads: their queries, keys (none of its own with `shared`) and values."""
    key = torch.cat([torch.arange(group * width, (group + 1) * width) for group in groups])
    begin = shape.heads * width
    begins = [begin] if shared else [begin, begin + shape.kv_heads * width]
    return torch.cat((_heads(shape, groups, width), *(key + place for place in begins)))


def _of_mixer(tensor: Tensor, name: str, kept: KeptLayer, config: GPTConfig) -> Tensor:
    """What a kind of attention learns for each head."""
    shape, groups = config.shape_of(kept.layer), list(kept.groups)
    if name in ("pool_keys", "pool_values"):
        return tensor[:, groups]
    if name == "k_features":
        return tensor[groups]
    if name == "q_features":
        size = shape.heads // shape.kv_heads
        return tensor[[group * size + place for group in groups for place in range(size)]]
    return tensor


def _channels(tensor: Tensor, rest: str, chosen: Tensor, first: bool, second: bool) -> Tensor:
    """The residual stream's channels of a tensor of a block."""
    reads = any(name in rest for name in ("attention.qkv.", "up.", "router.")) and not second
    writes = any(name in rest for name in ("attention.out.", "down.")) and not first
    if rest.startswith(("attention_norm", "attention_out_norm", "ff_norm", "ff_out_norm")) or (
        writes and rest.endswith("bias")
    ):
        return tensor[chosen]
    if reads and rest.endswith("weight"):
        return tensor[:, chosen]
    return tensor[chosen] if writes else tensor


def _moved(name: str, places: dict[int, int], layers: Sequence[KeptLayer]) -> str | None:
    """The new name of a module, or None where it is gone."""
    parts = name.split(".")
    if parts[0] != "blocks":
        return name
    if int(parts[1]) not in places:
        return None
    place = places[int(parts[1])]
    if len(parts) > 3 and parts[2:4] == ["ff", "experts"]:
        experts = layers[place].experts
        if int(parts[4]) not in experts:
            return None
        parts[4] = str(experts.index(int(parts[4])))
    if (parts[2] == "attention" and not layers[place].groups) or (
        parts[2] == "ff" and not any(map(len, layers[place].units))
    ):
        return None
    return ".".join(["blocks", str(place), *parts[2:]])
