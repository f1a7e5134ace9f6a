"""Modules whose weights are stored in groups of few bits (`groups`).

`unpack` says how they are multiplied: "kernel", as integers by our own kernels, activations rounded to 8 bits group by
group (the weights lie in memory as these want them, and nowhere else); "load", in float32 by the dense matrix, made
once when it is first used; "fly", the same, made in each product. Where there are no kernels, or they do not take
groups of that size, "kernel" is "load".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.compress.frozen import Frozen
from lmforge.compress.groups import Rounded, pack_codes, packed_width, spread, unpack_codes
from lmforge.kernels import matrix
from lmforge.kernels.build import library
from lmforge.kernels.matrix import Packed


class Grouped(Frozen):
    """A matrix (rows, width) in groups. The file holds `codes` and `scale`, with `scaled` `channel` (width,), by which
    columns were multiplied before they were rounded, and by `offset`:

        "zero"     `zero`, w = scale · (code − zero)
        "least"    `least` float16, w = scale · code + least
        a number   nothing: the zero of all groups
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    least: Tensor
    channel: Tensor | None

    def __init__(
        self,
        rows: int,
        width: int,
        bits: int,
        group: int,
        scaled: bool = False,
        unpack: str = "load",
        offset: str | int = "zero",
    ) -> None:
        super().__init__()
        self.rows, self.width, self.weight_bits, self.group, self.unpack = rows, width, bits, group, unpack
        self.offset = offset
        self._dense: Tensor | None = None
        self.packed: Packed | None = None
        self._elsewhere: tuple[torch.device, tuple[Tensor, ...]] | None = None
        groups = -(-width // group)
        self.register_buffer("codes", torch.zeros(rows, packed_width(width, bits), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(rows, groups, dtype=torch.float16))
        if isinstance(offset, str):
            kind = torch.uint8 if offset == "zero" else torch.float16
            self.register_buffer(offset, torch.zeros(rows, groups, dtype=kind))
        self.register_buffer("channel", torch.ones(width) if scaled else None)

    @property
    def parted(self) -> tuple[str, ...]:
        """Names of the buffers that lie in the kernel's matrix, where there is one."""
        return ("codes", "scale", self.offset) if isinstance(self.offset, str) else ("codes", "scale")

    def fill(self, rounded: Rounded, channel: Tensor | None = None) -> None:
        """Take weights that were rounded."""
        self.codes, self.scale, self.zero = pack_codes(rounded.codes, self.weight_bits), rounded.scale, rounded.zero
        if channel is not None:
            self.channel = channel
        self._settle()

    def _settle(self) -> None:
        """Lay new weights out for the kernel, where it multiplies them."""
        self._dense = self.packed = self._elsewhere = None
        if self.unpack != "kernel" or library() is None or not self.codes.is_cpu:
            return
        if matrix.group_of(self.width, self.group) is None:
            return
        code = unpack_codes(self.codes, self.width, self.weight_bits)
        offsets: dict[str, Any] = {"zero": self.offset}
        if isinstance(self.offset, str):
            offsets = {self.offset: getattr(self, self.offset)}
        self.packed = matrix.codes(code, self.weight_bits, self.group, self.scale, **offsets, channel=self.channel)
        for name in self.parted:
            setattr(self, name, getattr(self, name).new_empty(0))

    def parts(self) -> tuple[Tensor, ...]:
        """The buffers of `parted`, as in the file."""
        if self.packed is None:
            return tuple(getattr(self, name) for name in self.parted)
        scale, offset = matrix.groups_of(self.packed)
        codes = pack_codes(self.packed.codes(), self.weight_bits)
        return (codes, scale) if offset is None else (codes, scale, offset)

    def rows_of(self, index: Tensor | None = None) -> Tensor:
        """The weights (O,I) float32, or some of their rows (N,I)."""
        if self.packed is not None:
            return self.packed.rows_of(torch.arange(self.rows) if index is None else index.cpu())
        return self.dense_of(tuple(part if index is None else part[index] for part in self.parts()))

    def dense_of(self, parts: tuple[Tensor, ...]) -> Tensor:
        """The weights that parts of the file, or some rows of them, stand for; on the parts' device."""
        codes, scale, *offset = parts
        code = unpack_codes(codes, self.width, self.weight_bits)
        if self.offset == "least":
            wide, least = (spread(each.float(), self.group, self.width) for each in (scale, offset[0]))
            weight = code.float() * wide + least
        else:
            zero = offset[0] if offset else torch.full_like(scale, float(self.offset))
            weight = Rounded(code, scale, zero).dense(self.group)
        return weight if self.channel is None else weight / self.channel.to(weight.device)

    def dense(self) -> Tensor:
        """The whole matrix; kept, unless it is made anew each time."""
        if self.unpack == "fly" or self.packed is not None:
            return self.rows_of()
        if self._dense is None or self._dense.device != self.codes.device:
            self._dense = self.rows_of()
        return self._dense

    def parts_on(self, device: torch.device) -> tuple[Tensor, ...]:
        """`parts` on a device that is no CPU, kept there."""
        if self._elsewhere is None or self._elsewhere[0] != device:
            self._elsewhere = (device, tuple(part.to(device) for part in self.parts()))
        return self._elsewhere[1]

    def dense_on(self, device: torch.device) -> Tensor:
        """The whole matrix on any device: made there from the codes, in each product unless `unpack` is "load"."""
        if device.type == "cpu":
            return self.dense()
        if self.unpack != "load":
            return self.dense_of(self.parts_on(device))
        if self._dense is None or self._dense.device != device:
            self._dense = self.dense_of(self.parts_on(device))
            self._elsewhere = None
        return self._dense

    def dense_weight(self) -> Tensor:
        """As `dense`, for what writes other formats."""
        return self.dense()

    @property
    def activation_bits(self) -> int:
        """Bits of what the weights are multiplied by."""
        return 32 if self.packed is None else 8

    def unregistered_bytes(self) -> int:
        """Bytes of the kernel's matrix, or of the dense one where that is kept."""
        if self.packed is not None:
            return self.packed.data.nbytes
        return 0 if self.unpack == "fly" else 4 * self.rows * self.width

    def weight_bytes(self) -> int:
        """Bytes that the weights take in memory."""
        return sum(buffer.nbytes for buffer in self.buffers()) + self.unregistered_bytes()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in zip(self.parted, self.parts(), strict=True):
            destination[prefix + name] = part

    def _load_from_state_dict(self, *arguments: Any) -> None:
        if self.packed is not None:  # room for what comes
            for name, part in zip(self.parted, self.parts(), strict=True):
                setattr(self, name, torch.empty_like(part))
        super()._load_from_state_dict(*arguments)
        self._settle()


class GroupedLinear(Grouped):
    """y = x Wᵀ + b; x (…,I) → (…,O)."""

    bias: Tensor | None

    def __init__(
        self,
        rows: int,
        width: int,
        bias: bool,
        bits: int,
        group: int,
        scaled: bool = False,
        unpack: str = "load",
        offset: str | int = "zero",
    ) -> None:
        super().__init__(rows, width, bits, group, scaled, unpack, offset)
        self.in_features, self.out_features = width, rows
        self.register_buffer("bias", torch.zeros(rows) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        if self.packed is None or not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, self.dense_on(x.device), self.bias)
        y = self.packed(x.float())
        return y if self.bias is None else y.add_(self.bias)

    def kernel_matrix(self) -> Packed | None:
        """Its matrix as our own kernels take it; None: they do not multiply it."""
        if self.packed is not None:
            return self.packed.with_bias(self.bias)
        return matrix.floats(self.dense(), self.bias) if self.unpack == "load" else None

    def macs_per_token(self) -> int:
        """As many as in floating point."""
        return self.rows * self.width


class GroupedEmbedding(Grouped):
    """Rows of a table: tokens (…) → (…,D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(…) → (…,D)."""
        if self.unpack != "fly" and self.packed is None:
            return F.embedding(tokens, self.dense())
        return self.rows_of(tokens.flatten()).view(*tokens.shape, self.width).to(tokens.device)

    def macs_per_token(self) -> int:
        """A lookup multiplies nothing."""
        return 0


class TiedGroupedHead(Frozen):
    """The output head that shares the embedding's table: x (…,D) → (…,V)."""

    def __init__(self, table: GroupedEmbedding) -> None:
        super().__init__()
        self.table = (table,)  # in a tuple, so that it is not registered (and stored) a second time
        self.weight_bits = table.weight_bits
        self.in_features, self.out_features = table.width, table.rows

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) → (…,V)."""
        packed = self.table[0].packed
        if packed is None or not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, self.table[0].dense_on(x.device))
        return packed(x.float())

    def dense_weight(self) -> Tensor:
        """As `Grouped.dense`, for what writes other formats."""
        return self.table[0].dense()

    def kernel_matrix(self) -> Packed | None:
        """As `GroupedLinear.kernel_matrix`."""
        table = self.table[0]
        return matrix.floats(table.dense()) if table.packed is None and table.unpack == "load" else table.packed

    @property
    def activation_bits(self) -> int:
        """Bits of what the weights are multiplied by."""
        return self.table[0].activation_bits

    def macs_per_token(self) -> int:
        """As many as in floating point."""
        return self.in_features * self.out_features


def grouped_form(old: nn.Linear | nn.Embedding, about: Mapping[str, Any], unpack: str) -> Grouped:
    """The empty grouped form of a layer, from its entry: bits, group, scaled, offset."""
    shape = (about["bits"], about["group"], about["scaled"], unpack, about.get("offset", "zero"))
    if isinstance(old, nn.Embedding):
        return GroupedEmbedding(old.num_embeddings, old.embedding_dim, *shape)
    return GroupedLinear(old.out_features, old.in_features, old.bias is not None, *shape)
