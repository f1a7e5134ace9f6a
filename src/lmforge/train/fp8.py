"""Products of 8-bit floating-point numbers inside the blocks, on GPUs that have them (Micikevicius et al. 2022, "FP8
Formats for Deep Learning").

    y = x Wᵀ:   x, W ─▶ / their largest size ─▶ E4M3 ─┐
    dx = g W:   g ───▶ / its largest size ───▶ E5M2 ──┼─▶ 8-bit product, summed in float32 ─▶ · both scales ─▶ bfloat16
    dW = gᵀ x                                         ┘

Weights, their gradients' sums and the optimizer stay float32; everything that is no matrix of a block is computed in
bfloat16. A scale is found anew for each product, on the device, so nothing has to be kept and a run resumes exactly.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.errors import InputError

UNIT = 16  # rows and columns of an 8-bit product come in multiples of this
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2  # 3 bits of mantissa for values, 5 of exponent for gradients
CAPABILITY = (8, 9)  # of the first GPUs with such units


def require(device: torch.device) -> None:
    """Refuse a device that does not multiply 8-bit floating-point numbers.

    Raises:
        InputError: a CPU, or a GPU before compute capability 8.9; says which it is.
    """
    if device.type != "cuda":
        raise InputError(
            "train.precision: 'fp8' needs a GPU of compute capability 8.9 or more, and this is a CPU; use 'auto'"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < CAPABILITY:
        raise InputError(
            f"train.precision: 'fp8' needs a GPU of compute capability 8.9 or more, and this one has {major}.{minor}; "
            "use 'auto'"
        )


def quantised(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x in 8 bits, the scale that gives it back): the largest value becomes the largest that the type holds."""
    scale = (x.abs().amax().float() / torch.finfo(kind).max).clamp(min=1e-30)
    return (x.float() / scale).to(kind), scale


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], out: torch.dtype) -> Tensor:
    """a (N,K) · bᵀ, b (M,K), both 8-bit with their scales → (N,M)."""
    return torch._scaled_mm(a[0].contiguous(), b[0].contiguous().t(), scale_a=a[1], scale_b=b[1], out_dtype=out)


class _Product(torch.autograd.Function):
    """x (N,K) · Wᵀ, W (M,K), all three products in 8 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, w8 = quantised(x, FORWARD), quantised(weight, FORWARD)
        ctx.save_for_backward(*x8, *w8)
        ctx.kinds = x.dtype, weight.dtype
        return product(x8, w8, torch.bfloat16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        kind, weight_kind = ctx.kinds
        g8, scale = quantised(gradient, BACKWARD)
        d_x = product((g8, scale), (w8.t(), w_scale), torch.bfloat16).to(kind)
        d_weight = product((g8.t(), scale), (x8.t(), x_scale), torch.bfloat16).to(weight_kind)
        return d_x, d_weight


class Linear8(nn.Linear):
    """A linear layer whose products are 8-bit; its parameters are those of an ordinary one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out); rows that are no multiple of `UNIT`, as when decoding, in the type they come in."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) % UNIT:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = _Product.apply(rows, self.weight)  # type: ignore[no-untyped-call]
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def use_fp8(model: nn.Module) -> int:
    """Let the products of a model's blocks be 8-bit, in place, where their sides are multiples of `UNIT`; gives back
    how many matrices that are."""
    matrices = [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith("blocks.")
        and type(module) is nn.Linear
        and module.in_features % UNIT == 0
        and module.out_features % UNIT == 0
    ]
    for name, module in matrices:
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, Linear8(module))
    return len(matrices)
