"""Products of quantised matrices on a GPU, in torch's own operations.

    8 bits       x ─127 levels a token─▶ int8 ─┐
                 weight int8 ─torch._int_mm──┴─▶ int32, exact ─▶ · scales ─▶ y: the bits that our kernels give on a CPU
    groups       codes lie on the device and become floats in each product (or once: `unpack = "load"`)

Where the device has no integer product (`torch._int_mm` refuses) matrices of 8 bits are made floats as well; a line of
the log says which way was taken.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.progress import log

LEVELS = 127
TINY = 1e-30
LEAST_ROWS, MULTIPLE = 32, 8  # what CUDA's product takes: more than 16 rows, widths of a multiple of 8


@functools.cache
def _tell(device: str, way: str) -> None:
    log(f"quantize: on {device} matrices of 8 bits are multiplied by {way}")


class DeviceMatrix:
    """An int8 matrix (O,I) with scales (O,) on the device where they lie; `clip`: the range of inputs, 0: each token's
    own."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, clip: float) -> None:
        self.rows, self.cols = weight.shape
        self.scale, self.bias, self.clip = scale.float(), bias, clip
        padded = F.pad(weight, (0, -self.cols % MULTIPLE, 0, -self.rows % MULTIPLE))
        self.weight = padded.t()  # (I,O), column after column, as the product wants it
        self.integers = True

    def __call__(self, x: Tensor) -> Tensor:
        """x (…,I) → (…,O) fp32."""
        flat = x.flatten(0, -2).float()
        if self.integers:
            try:
                y = self._by_integers(flat)
                _tell(x.device.type, "torch._int_mm, activations in 8 bits")
            except (RuntimeError, NotImplementedError) as error:
                self.integers = False
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                _tell(x.device.type, f"floating point: torch._int_mm refuses ({first[:100]})")
        if not self.integers:
            y = flat @ (self.weight.t()[: self.rows, : self.cols].float() * self.scale[:, None]).t()
            y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.rows)

    def _by_integers(self, x: Tensor) -> Tensor:
        own = x.abs().amax(1, keepdim=True).clamp(min=TINY)
        most = torch.full_like(own, self.clip) if self.clip > 0 else own
        codes = (x * (LEVELS / most)).clamp(-LEVELS, LEVELS).round().to(torch.int8)
        codes = F.pad(codes, (0, -self.cols % MULTIPLE, 0, max(0, LEAST_ROWS - len(codes))))
        sums = torch._int_mm(codes, self.weight)[: len(x), : self.rows]
        y = (self.scale * (most / LEVELS)) * sums.float()
        return y if self.bias is None else y + self.bias
