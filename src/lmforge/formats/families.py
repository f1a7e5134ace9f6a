"""Families of networks as tables that are read both ways: their makers' configuration and tensors ↔ ours.

    config.json ─Family.shape─▶ GPTConfig          GPTConfig ─Family.settings─▶ config.json
    their tensors ─Place.fill─▶ one of ours        one of ours ─Place.split─▶ their tensors

A `Family` has rules for its configuration (`Key`: one of theirs is one of ours; others in `families_rules`) and rows
for its tensors (`Row`). What differs between layouts: stacked matrices (queries, keys and values; gate and input),
matrices transposed, and the channels that RoPE turns together: j and j + R/2 of the R that turn, where ours are 2j and
2j + 1. All of it is an order of rows, so the way back is the inverse order and loses no bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig
from lmforge.registry import Registry

REQUIRED: Any = object()
Settings = Mapping[str, Any]


class Rule(Protocol):
    """What some keys of theirs mean."""

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """Fields of a GPTConfig that reads `context` tokens.

        Raises:
            InputError: a key is missing, or says what ours does not compute.
        """

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """Their keys. What they cannot say is found by reading them again (`Family.settings`)."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of theirs that is one field of ours. `default`: what theirs means where it is missing or null (REQUIRED:
    it has to be there); `names`: values that are called otherwise there."""

    ours: str
    theirs: str
    default: Any = REQUIRED
    names: Mapping[Any, Any] | None = None

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        value = settings.get(self.theirs)
        if value is None:
            value = self.default
        if value is REQUIRED:
            raise InputError(f"config.json: {self.theirs} is missing; save the checkpoint with transformers again")
        if self.names is not None:
            if value not in self.names:
                known = ", ".join(map(str, self.names))
                raise InputError(f"config.json: {self.theirs} = {value!r}: ours computes {known} there")
            value = self.names[value]
        return {self.ours: value}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        value = getattr(config, self.ours)
        if self.names is not None:
            value = next((name for name, own in self.names.items() if own == value), None)
        return {self.theirs: value}


@dataclasses.dataclass(frozen=True)
class Always:
    """Fields of ours that are the same in all networks of a family."""

    fields: Mapping[str, Any]

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        return dict(self.fields)

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {}


@dataclasses.dataclass(frozen=True)
class Only:
    """Keys of theirs of which ours computes some values alone; the first is the one that a missing key means."""

    values: Mapping[str, tuple[Any, ...]]

    def read(self, settings: Settings, context: int) -> dict[str, Any]:
        """See `Rule`."""
        for key, allowed in self.values.items():
            if settings.get(key, allowed[0]) not in allowed:
                raise InputError(
                    f"config.json: {key} = {settings[key]!r}: this network cannot be imported, ours does not compute "
                    "that"
                )
        return {}

    def write(self, config: GPTConfig) -> dict[str, Any]:
        """See `Rule`."""
        return {}


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of one tensor of ours lie in theirs. `order` (config, layer) → for each row of ours, its place among
    the rows of theirs, one tensor after the other; `sizes` → how many rows each of theirs has. None: as they are."""

    order: Callable[[GPTConfig, int], Tensor] | None = None
    sizes: Callable[[GPTConfig, int], tuple[int, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table of tensors: names without `.weight` and `.bias`, of a layer without what all of the layer
    have in front. Which of both there are, ours says. `skipped`: rows of theirs that come first and have no meaning."""

    ours: str
    theirs: tuple[str, ...]
    rows: Rows = Rows()
    transposed: bool = False
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one tensor of ours stands among theirs: `theirs` are whole names, stacked in this order."""

    ours: str
    theirs: tuple[str, ...]
    order: Tensor | None
    sizes: tuple[int, ...] | None
    transposed: bool
    skipped: int

    def fill(self, target: Tensor, take: Callable[[str], Tensor]) -> None:
        """Write theirs into `target`, of ours' shape and type, one tensor at a time. Rows of theirs beyond those of a
        table of tokens are left out.

        Raises:
            InputError: shapes that do not fit.
        """
        back = None if self.order is None else self.order.argsort()
        begin = 0
        for name in self.theirs:
            rows = self._ours_from(take(name))
            if self.ours in TOKEN_TABLES:
                rows = rows[: len(target)]
            end = begin + len(rows)
            if rows.shape[1:] != target.shape[1:] or end > len(target):
                raise InputError(f"{self.ours} would be {(end, *rows.shape[1:])} from {name}, {_said(target)}")
            if back is None:
                target[begin:end] = rows.to(target.dtype)
            else:
                target.index_copy_(0, back[begin:end], rows.to(target.dtype))
            begin = end
        if begin != len(target):
            raise InputError(f"{self.ours} would be {(begin, *target.shape[1:])}, {_said(target)}")

    def _ours_from(self, tensor: Tensor) -> Tensor:
        return (tensor.t() if self.transposed and tensor.ndim == 2 else tensor)[self.skipped :]

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """One of ours → each of theirs with its name, contiguous; rows without a meaning are zeros."""
        rows = tensor if self.order is None else tensor[self.order.argsort()]
        for name, part in zip(self.theirs, (rows,) if self.sizes is None else rows.split(self.sizes), strict=True):
            if self.skipped:
                part = torch.cat((part.new_zeros(self.skipped, *part.shape[1:]), part))
            yield name, (part.t() if self.transposed and part.ndim == 2 else part).contiguous()


TOKEN_TABLES = ("embed.weight", "head.weight")


def _said(target: Tensor) -> str:
    return f"and config.json says {tuple(target.shape)}"


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of `transformers`.

    `model_type` and `architecture` as config.json has them; `context` is the key of the longest text; `rules` and
    `rows` as above, `layer` what stands before the names of a layer ("model.layers.{}."), `layer_rows` their table.
    `prefixes`: what published checkpoints have in the place of the first part of a name, the usual one first.
    `ignored`: ends of names of tensors that are no weights. `section`: the key that holds the settings of the text
    model, where config.json describes more than that. `aliases`: other values of model_type.
    """

    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    rows: tuple[Row, ...]
    layer: str
    layer_rows: tuple[Row, ...]
    context: str = "max_position_embeddings"
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    section: str = ""
    aliases: tuple[str, ...] = ()

    def shape(self, settings: Settings, vocabulary: int, context: int | None = None) -> GPTConfig:
        """The network that their configuration describes, for `vocabulary` tokens and texts of `context` tokens
        (default: as many as it allows).

        Raises:
            InputError: keys are missing or say what ours does not compute (names them).
        """
        if self.section and isinstance(settings.get(self.section), Mapping):
            settings = settings[self.section]
        reach = Key("context", self.context).read(settings, 0)["context"]
        if context is not None and not 0 < context <= reach:
            raise InputError(f"--context {context}: this checkpoint reads 1 to {reach} tokens")
        fields: dict[str, Any] = {"vocab_size": vocabulary, "context": context or reach}
        for rule in self.rules:
            fields |= rule.read(settings, fields["context"])
        if fields.get("positions") == "learned" and fields["context"] != reach:
            raise InputError(f"--context {context}: the learned positions of this checkpoint are {reach}; leave it out")
        return GPTConfig(**fields)

    def settings(self, config: GPTConfig) -> dict[str, Any]:
        """What config.json says of a network; reading it gives the same network again.

        Raises:
            InputError: this family cannot say it (names the keys).
        """
        written: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": config.vocab_size,
            self.context: config.context,
        }
        for rule in self.rules:
            written |= rule.write(config)
        again = self.shape(written, config.vocab_size).to_json()
        own = config.to_json()
        other = [f"{key} = {own[key]!r}" for key in own if own[key] != again[key] and key not in NOT_COMPUTED]
        if other:
            raise InputError(f"{self.architecture} does not compute {', '.join(f'model.{each}' for each in other)}")
        return written

    def places(self, config: GPTConfig, names: Iterable[str]) -> Iterator[Place]:
        """Where tensors of ours (their names in the network's state) stand in a checkpoint.

        Raises:
            InputError: this family has no such tensor.
        """
        outer, inner = ({row.ours: row for row in rows} for rows in (self.rows, self.layer_rows))
        for name in names:
            part, _, kind = name.rpartition(".")
            layer, prefix = 0, ""
            if part.startswith("blocks."):
                _, number, part = part.split(".", 2)
                layer, prefix = int(number), self.layer.format(number)
            row = (inner if prefix else outer).get(part)
            if row is None:
                raise InputError(f"{self.architecture} has no tensor for {name}")
            yield Place(
                name,
                tuple(f"{prefix}{theirs}.{kind}" for theirs in row.theirs),
                row.rows.order(config, layer) if row.rows.order else None,
                row.rows.sizes(config, layer) if row.rows.sizes else None,
                row.transposed,
                row.skipped,
            )


# Fields of ours that change nothing of what a network computes once it is trained, or have no meaning in the others.
NOT_COMPUTED = frozenset(
    {"recompute", "z_loss", "ahead", "balance", "stride", "pool", "pooling", "lsh_span", "lsh_rounds", "feature_map"}
    | {"experts_active", "image_patch", "image_channels", "norm_eps", "rope_base", "window"}
)
FAMILIES: Registry[Family] = Registry("family", ("lmforge.formats.families_llama", "lmforge.formats.families_gpt"))


def family_of(settings: Settings) -> Family:
    """The family of a config.json, by its model_type.

    Raises:
        InputError: there is none.
    """
    kind = settings.get("model_type")
    for family in FAMILIES.values():
        if kind in (family.model_type, *family.aliases):
            return family
    known = ", ".join(family.model_type for family in FAMILIES.values())
    raise InputError(f"config.json: model_type {kind!r}; {known} can be imported")


def pairs(config: GPTConfig) -> Tensor:
    """For each channel of a head of ours, which of theirs it is (E,): 2j is j and 2j + 1 is j + R/2 of the R channels
    that RoPE turns."""
    channels = torch.arange(config.head_width)
    if config.positions == "rope":
        half = config.rotary_width // 2
        channels[: 2 * half] = torch.stack((torch.arange(half), torch.arange(half) + half), 1).flatten()
    return channels


def _heads(config: GPTConfig, heads: int, begin: int = 0, step: int = 0) -> Tensor:
    """The rows of heads, each turned by `pairs`; heads begin `step` rows apart."""
    starts = begin + torch.arange(heads) * (step or config.head_width)
    return (starts[:, None] + pairs(config)).flatten()


def _qkv(config: GPTConfig, layer: int) -> Tensor:
    shape, width = config.shape_of(layer), config.head_width
    queries, keys = shape.heads * width, shape.kv_heads * width
    values = queries + keys + torch.arange(keys)
    return torch.cat((_heads(config, shape.heads), _heads(config, shape.kv_heads, queries), values))


def _qkv_sizes(config: GPTConfig, layer: int) -> tuple[int, ...]:
    shape = config.shape_of(layer)
    return tuple(heads * config.head_width for heads in (shape.heads, shape.kv_heads, shape.kv_heads))


def _qkv_by_head(config: GPTConfig, layer: int) -> Tensor:
    heads, width = config.shape_of(layer).heads, config.head_width
    values = (2 * width + torch.arange(heads)[:, None] * 3 * width + torch.arange(width)).flatten()
    return torch.cat((_heads(config, heads, 0, 3 * width), _heads(config, heads, width, 3 * width), values))


def _halves(config: GPTConfig, layer: int) -> tuple[int, ...]:
    return (config.shape_of(layer).d_ff,) * 2


AS_THEY_ARE = Rows()
QKV = Rows(_qkv, _qkv_sizes)  # queries, keys and values apart
QKV_STACKED = Rows(_qkv)  # in one matrix, in this order
QKV_BY_HEAD = Rows(_qkv_by_head)  # in one matrix, the three of each head together
GATE_AND_INPUT = Rows(sizes=_halves)  # apart
ONE_HEAD = Rows(lambda config, layer: pairs(config))  # the channels of one head
QUERIES = Rows(lambda config, layer: _heads(config, config.shape_of(layer).heads))  # those of all heads
KEYS = Rows(lambda config, layer: _heads(config, config.shape_of(layer).kv_heads))
