"""What the kernels compute, in torch, number by number: what they are tested against, and checked with when loaded."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from lmforge.kernels.build import CHECKS
from lmforge.kernels.matrix import WIDTHS, Packed, codes, columns

TINY = 1e-30


def rounded(x: Tensor, group: int, whole_row: bool = False, clip: float = 0.0) -> tuple[Tensor, Tensor]:
    """x (N,I) → int codes (N,G,group), filled up with 0, and their scales (N,G): 127 levels on each side of 0, half to
    even."""
    rows, width = x.shape
    groups = -(-width // group)
    parts = torch.nn.functional.pad(x.float(), (0, groups * group - width)).view(rows, groups, group)
    most = parts.abs().amax(2, keepdim=True)
    if whole_row:
        most = most.amax(1, keepdim=True).expand_as(most)
    most = torch.full_like(most, clip) if clip > 0 else most.clamp(min=TINY)
    code = (parts * (127.0 / most)).clamp(-127, 127).round().long()
    return code, (most / 127.0)[:, :, 0]


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, rounded once: the product of two floats is exact in double precision (the sum is rounded there first,
    which changes a result in one case of 2^29)."""
    return (a.double() * b.double() + c.double()).float()


def product(
    x: Tensor,
    code: Tensor,
    group: int,
    scale: Tensor,
    zero: Tensor | int = 0,
    least: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    channel: Tensor | None = None,
    whole_row: bool = False,
    clip: float = 0.0,
) -> Tensor:
    """x (N,I) times the matrix that `matrix.codes` takes, (N,O)."""
    x = x if channel is None else x / channel
    width = code.shape[1]
    codes_x, sx = rounded(x, group, whole_row, clip)
    groups = sx.shape[1]
    codes_w = torch.nn.functional.pad(code.long(), (0, groups * group - width)).view(len(code), groups, group)
    sums = torch.einsum("ngk,ogk->ngo", codes_x.double(), codes_w.double())  # exact: far below 2^53
    total = codes_x.sum(2)
    zeros = zero.double().t() if isinstance(zero, Tensor) else float(zero)
    exact = sums - total[:, :, None].double() * zeros
    y = torch.zeros(len(x), len(code))
    for g in range(groups):
        y = fused(scale.float()[:, g] * sx[:, g, None], exact[:, g].float(), y)
        if least is not None:
            y = fused(least.float()[:, g].expand_as(y), (sx[:, g] * total[:, g].float())[:, None].expand_as(y), y)
    return y if bias is None else y + bias


def float_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N,I) times weight (O,I), both fp32: sixteen sums, of every sixteenth column each, which are added up by
    halves; then the columns that are left over one by one. (N,O)."""
    whole = weight.shape[1] // 16 * 16
    sums = torch.zeros(len(x), len(weight), 16)
    for k in range(0, whole, 16):
        sums = fused(x[:, None, k : k + 16].expand_as(sums), weight[None, :, k : k + 16].expand_as(sums), sums)
    for half in (8, 4, 2, 1):
        sums = sums[..., :half] + sums[..., half : 2 * half]
    y = sums[..., 0]
    for k in range(whole, weight.shape[1]):
        y = fused(x[:, k, None].expand_as(y), weight[None, :, k].expand_as(y), y)
    return y if bias is None else y + bias


def agrees(kernels: ctypes.CDLL) -> bool:
    """Whether a library multiplies one small matrix of each kind of code as it should."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, generator=generator)
    x[0, 7] = 60.0
    for bits in WIDTHS:
        code = torch.randint(2**bits, (19, 40), generator=generator, dtype=torch.uint8)
        code[0] = 2**bits - 1  # where a sum of pairs in 16 bits would be cut
        scale = torch.rand(19, 3, generator=generator).half()
        zero = torch.randint(2**bits, (19, 3), generator=generator, dtype=torch.uint8)
        packed = codes(code, bits, 16, scale, zero)
        if not torch.equal(_called(kernels, packed, x), product(x, code, 16, scale, zero)):
            return False
    code = torch.randint(256, (19, 40), generator=generator, dtype=torch.uint8)
    rows = torch.rand(19, 1, generator=generator)
    whole = codes(code, 8, 40, rows, 128, whole_row=True)
    skipping = columns((code.short() - 128).to(torch.int8), rows[:, 0], whole)
    expected = product(x, code, 48, rows, 128, whole_row=True)
    return all(torch.equal(_called(kernels, each, x[:n]), expected[:n]) for each in (whole, skipping) for n in (1, 3))


def _called(kernels: ctypes.CDLL, packed: Packed, x: Tensor) -> Tensor:
    y = torch.empty(len(x), packed.rows)
    pointers = [ctypes.c_void_p(each.data_ptr()) for each in (x, y)]
    kernels.lmforge_linear(
        ctypes.byref(packed.struct), pointers[0], ctypes.c_int64(len(x)), pointers[1], ctypes.c_int64(1)
    )
    return y


CHECKS.append(agrees)
