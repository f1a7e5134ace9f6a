"""Weights as small integers in groups: w ≈ (code − zero) · scale, one scale and zero for each `group` of neighbours
in a row. A weight of 0 is kept exactly. Rows are packed bit by bit, a whole number of bytes each.

    weight (O,I) ─round_groups─▶ codes (O,I) ─pack_codes─▶ (O, ⌈I·bits/8⌉) uint8, scale (O,G) float16, zero (O,G) uint8
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lmforge.compress.int8 import TINY
from lmforge.kernels.bits import pack_codes, packed_width, unpack_codes

__all__ = ["Rounded", "grid", "pack_codes", "packed_width", "round_groups", "spread", "to_codes", "unpack_codes"]


class Rounded(NamedTuple):
    """codes (O,I) uint8, scale (O,G) float16, zero (O,G) uint8."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def dense(self, group: int) -> Tensor:
        """The weights that they stand for, (O,I) float32."""
        scale, zero = (spread(each, group, self.codes.shape[1]) for each in (self.scale.float(), self.zero.float()))
        return (self.codes.float() - zero) * scale


def spread(each: Tensor, group: int, width: int) -> Tensor:
    """A value for each group (O,G) → one for each weight (O,width)."""
    return each.repeat_interleave(group, 1)[:, :width]


def grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The scale and zero (O,) of one group of weights (O,N): from the least to the largest and over 0."""
    levels = 2**bits - 1
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    # rounded up to float16, so that the largest weight is still on the grid
    scale = ((high - low) / levels).clamp(min=2.0**-24)
    half = scale.half()
    half = torch.where(half.float() < scale, torch.nextafter(half, half.new_full((), torch.inf)), half)
    return half, (-low / half.float()).round().clamp(0, levels).to(torch.uint8)


def to_codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes; all of one shape, or scale and zero of a shape that spreads."""
    return (weight / scale.float().clamp(min=TINY) + zero.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)


def round_groups(weight: Tensor, bits: int, group: int) -> Rounded:
    """Each weight of (O,I) to the nearest on its group's grid."""
    weight = weight.float()
    width = weight.shape[1]
    grids = [grid(part, bits) for part in weight.split(group, 1)]
    scale, zero = (torch.stack(each, 1) for each in zip(*grids, strict=True))
    codes = to_codes(weight, spread(scale, group, width), spread(zero, group, width), bits)
    return Rounded(codes, scale, zero)
