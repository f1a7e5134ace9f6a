"""Modules whose weights are stored in groups of few bits (`groups`) and multiplied in float32.

No kernel of few bits is here: the dense matrix is made once when it is first used (the speed is that of fp32), or in
each product (less memory, slower).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.compress.frozen import Frozen
from lmforge.compress.groups import Rounded, pack_codes, packed_width, unpack_codes


class Grouped(Frozen):
    """A matrix (rows, width) in groups. The file holds `codes`, `scale`, `zero`, and with `scaled` `channel` (width,),
    by which columns were multiplied before they were rounded."""

    activation_bits = 32
    codes: Tensor
    scale: Tensor
    zero: Tensor
    channel: Tensor | None

    def __init__(self, rows: int, width: int, bits: int, group: int, scaled: bool = False, fly: bool = False) -> None:
        super().__init__()
        self.rows, self.width, self.weight_bits, self.group, self.fly = rows, width, bits, group, fly
        self._dense: Tensor | None = None
        groups = -(-width // group)
        self.register_buffer("codes", torch.zeros(rows, packed_width(width, bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(rows, groups, dtype=torch.float16))
        self.register_buffer("zero", torch.zeros(rows, groups, dtype=torch.uint8))
        self.register_buffer("channel", torch.ones(width) if scaled else None)

    def fill(self, rounded: Rounded, channel: Tensor | None = None) -> None:
        """Take weights that were rounded."""
        self.codes, self.scale, self.zero = pack_codes(rounded.codes, self.weight_bits), rounded.scale, rounded.zero
        if channel is not None:
            self.channel = channel
        self._dense = None

    def rows_of(self, index: Tensor | None = None) -> Tensor:
        """The weights (O,I) float32, or some of their rows (N,I)."""
        parts = (self.codes, self.scale, self.zero)
        codes, scale, zero = parts if index is None else (part[index] for part in parts)
        weight = Rounded(unpack_codes(codes, self.width, self.weight_bits), scale, zero).dense(self.group)
        return weight if self.channel is None else weight / self.channel

    def dense(self) -> Tensor:
        """The whole matrix; kept, unless it is made anew each time."""
        if self.fly:
            return self.rows_of()
        if self._dense is None or self._dense.device != self.codes.device:
            self._dense = self.rows_of()
        return self._dense

    def unregistered_bytes(self) -> int:
        """Bytes of the dense matrix, where it is kept."""
        return 0 if self.fly else 4 * self.rows * self.width

    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory."""
        return sum(buffer.nbytes for buffer in self.buffers()) + self.unregistered_bytes()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._dense = None


class GroupedLinear(Grouped):
    """y = x Wᵀ + b; x (…,I) → (…,O)."""

    bias: Tensor | None

    def __init__(
        self, rows: int, width: int, bias: bool, bits: int, group: int, scaled: bool = False, fly: bool = False
    ) -> None:
        super().__init__(rows, width, bits, group, scaled, fly)
        self.in_features, self.out_features = width, rows
        self.register_buffer("bias", torch.zeros(rows) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        return F.linear(x, self.dense(), self.bias)

    def macs_per_token(self) -> int:
        """As many as in floating point."""
        return self.rows * self.width


class GroupedEmbedding(Grouped):
    """Rows of a table: tokens (…) → (…,D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) → (…,D)."""
        if not self.fly:
            return F.embedding(tokens, self.dense())
        return self.rows_of(tokens.flatten()).view(*tokens.shape, self.width)

    def macs_per_token(self) -> int:
        """A lookup multiplies nothing."""
        return 0


class TiedGroupedHead(Frozen):
    """The output head that shares the embedding's table: x (…,D) → (…,V)."""

    activation_bits = 32

    def __init__(self, table: GroupedEmbedding) -> None:
        super().__init__()
        self.table = (table,)  # in a tuple, so that it is not registered (and stored) a second time
        self.weight_bits = table.weight_bits
        self.in_features, self.out_features = table.width, table.rows

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) → (…,V)."""
        return F.linear(x, self.table[0].dense())

    def macs_per_token(self) -> int:
        """As many as in floating point."""
        return self.in_features * self.out_features


def grouped_form(old: nn.Linear | nn.Embedding, bits: int, group: int, scaled: bool, fly: bool) -> Grouped:
    """The empty grouped form of a layer."""
    if isinstance(old, nn.Embedding):
        return GroupedEmbedding(old.num_embeddings, old.embedding_dim, bits, group, scaled, fly)
    return GroupedLinear(old.out_features, old.in_features, old.bias is not None, bits, group, scaled, fly)
