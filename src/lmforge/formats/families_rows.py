"""Rows of a family's table of tensors: where a tensor of ours stands among theirs, and how its rows lie there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig

TOKEN_TABLES = ("embed.weight", "head.weight")  # whose rows are tokens


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
                rows = _rows_of_tokens(rows, len(target), name)
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


def _rows_of_tokens(table: Tensor, tokens: int, name: str) -> Tensor:
    """The rows of tokens: those beyond them, which only pad the table, are left out."""
    if not tokens <= len(table) <= max(1.1 * tokens, tokens + 1024):
        raise InputError(
            f"{name} has {len(table):,} rows for {tokens:,} tokens of the tokenizer; they do not belong together"
        )
    return table[:tokens]


def _said(target: Tensor) -> str:
    return f"and config.json says {tuple(target.shape)}"


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
