"""Small integers packed bit by bit, as files hold them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4096  # unpacked at a time, so that their single bits stay small


def packed_width(width: int, bits: int) -> int:
    """Bytes of a packed row."""
    return -(-width * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """codes (O,I) uint8 below 2^bits → (O, ⌈I·bits/8⌉) uint8: the bits of a row one after another, the lowest first."""
    if bits == 8:
        return codes.contiguous()
    places, bytes_ = (torch.arange(count, dtype=torch.uint8, device=codes.device) for count in (bits, 8))
    rows = []
    for part in codes.split(ROWS):
        single = ((part[..., None] >> places) & 1).flatten(1)
        single = F.pad(single, (0, -single.shape[1] % 8)).view(len(part), -1, 8)
        rows.append((single << bytes_).sum(-1, dtype=torch.uint8))
    return torch.cat(rows)


def unpack_codes(packed: Tensor, width: int, bits: int) -> Tensor:
    """The codes (O,width) of packed rows."""
    if bits == 8:
        return packed
    places, bytes_ = (torch.arange(count, dtype=torch.uint8, device=packed.device) for count in (bits, 8))
    rows = []
    for part in packed.split(ROWS):
        single = ((part[..., None] >> bytes_) & 1).flatten(1)[:, : width * bits].view(len(part), width, bits)
        rows.append((single << places).sum(-1, dtype=torch.uint8))
    return torch.cat(rows)
