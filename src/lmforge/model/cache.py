"""What one pass knows beside its tokens: where they stand, and what each layer kept of those before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lmforge.model.packing import Packing


class LayerCache(Protocol):
    """What one layer keeps of the tokens seen so far: keys and values of some, or sums over all."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""

    def joined(self, parts: Sequence[Any]) -> LayerCache:
        """The rows of several caches of this layer, in order."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""


class KVCache:
    """What each layer keeps of the tokens seen so far, by its kind of attention; rows may be of different lengths.

    A layer makes its part itself when it first runs, from the keys and values that it has then: a stage of a pipeline
    keeps its own layers only, and a layer the heads that it holds. `layers` are those parts, by layer number.
    `lengths` (B,) counts the tokens each row holds, `extent` is the longest row's count, kept on the host so that
    decoding never waits for the device. `recent` (B,2) are the last two token ids of each row, which the n-gram
    embedding of the next token needs.

    `by_row`: the number of tokens of each row, on the host, where every row is to meet its own keys in a call of its
    own, with the shapes that it would have alone. Kernels add in an order that depends on the shape, and give the same
    row other last bits in a larger batch.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.capacity, self.dtype = capacity, dtype
        self.layers: dict[int, LayerCache] = {}
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.recent = torch.zeros(rows, 2, dtype=torch.long, device=device)
        self.extent = 0
        self.by_row: list[int] | None = None
        self.plan: tuple[Any] | None = None  # how its model decodes, once that is known (`generate.lean`)

    @classmethod
    def joined(cls, caches: Sequence[KVCache]) -> KVCache:
        """The rows of several caches of one model, in order, in a cache of their own (`by_row`).

        Raises:
            NotImplementedError: a layer whose kind of attention cannot join its rows.
        """
        whole = cls(0, caches[0].capacity, caches[0].lengths.device, caches[0].dtype)
        whole.layers = {n: layer.joined([each.layers[n] for each in caches]) for n, layer in caches[0].layers.items()}
        whole.lengths = torch.cat([each.lengths for each in caches])
        whole.recent = torch.cat([each.recent for each in caches])
        whole.by_row = whole.lengths.tolist()
        whole.extent = max(whole.by_row)
        return whole

    def advance(self, tokens: Tensor | None, lengths: Tensor) -> None:
        """Count `lengths` (B,) tokens as seen; tokens (B,T), on the right of which may be padding, where their ids are
        known."""
        self.lengths = self.lengths + lengths
        if tokens is not None:
            padded = torch.cat((self.recent, tokens), 1)
            self.recent = padded.gather(1, lengths[:, None] + torch.arange(2, device=tokens.device))

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; the others are forgotten."""
        for layer in self.layers.values():
            layer.select(rows)
        self.lengths, self.recent = self.lengths[rows], self.recent[rows]
        self.extent = int(self.lengths.max())
        self.by_row = None if self.by_row is None else self.lengths.tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.nbytes for layer in self.layers.values())


@dataclasses.dataclass
class ForwardContext:
    """Where the tokens of one pass stand; the same for all layers.

    table (N,E/2) complex: the rotation of each position; rotations (T,E/2) or (B,T,E/2): those of these tokens (with
    `packing`: of a row's first T positions). With a cache: positions (B,T) in the text, and lengths (B,): how many of
    the T tokens are real, the rest is padding. loads (X,) by layer: how many tokens each expert took. `scale` is the
    loss's own gradient, left here by the backward pass for the losses of routers (`experts`). `local`: the same for
    window layers, where their RoPE is another one.
    """

    table: Tensor | None = None
    rotations: Tensor | None = None
    packing: Packing | None = None
    cache: KVCache | None = None
    positions: Tensor | None = None
    lengths: Tensor | None = None
    loads: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    scale: Tensor | None = None
    local: ForwardContext | None = None
