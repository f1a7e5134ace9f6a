"""An int8 layer of which a few input columns stay in floating point: those whose inputs tower above the rest, and would
stretch the range in which all others are rounded (Dettmers et al. 2022, LLM.int8(), section 3.2; there the columns are
found in each product, here once, on calibration text).

    x (…,I) ─ columns set to 0 ─▶ int8 product ─┐
      └──── columns (…,K) · kept (K,O) in fp32 ─┴─▶ y (…,O)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmforge.compress.int8 import QuantizedLinear
from lmforge.kernels.matrix import Packed


class OutlierLinear(QuantizedLinear):
    """As QuantizedLinear, with `outliers` input columns in fp32: `columns` (K,) are their numbers, `kept` (K,O) their
    weights, which are 0 in the int8 matrix. A token's result does not depend on the others in its batch."""

    columns: Tensor
    kept: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool, signed: bool, outliers: int, floats: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias, signed, floats=floats)
        self.register_buffer("columns", torch.zeros(outliers, dtype=torch.int64))
        self.register_buffer("kept", torch.zeros(outliers, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        columns, kept = self.columns.to(x.device), self.kept.to(x.device)
        y = super().forward(x.index_fill(-1, columns, 0.0))
        for column, weights in zip(columns.tolist(), kept, strict=True):  # added one by one: alike in every batch
            y = y + x[..., column, None] * weights
        return y

    def kernel_matrix(self) -> Packed | None:
        """None: no kernel has both parts."""
        return None

    def kernel_columns(self) -> Packed | None:
        """None, as above."""
        return None

    def dense_weight(self) -> Tensor:
        """The matrix (O,I) that it multiplies by, in fp32."""
        weight, scale = self.unpacked()
        dense = weight.float() * scale.float()[:, None]
        dense[:, self.columns] = self.kept.t()
        return dense

    def macs_per_token(self) -> int:
        """Those of the int8 matrix, and of its columns in fp32."""
        return super().macs_per_token() + self.kept.numel()

    def bit_operations(self) -> int:
        """Of a token: those in 8 bits, and of its columns in fp32."""
        return super().bit_operations() + self.kept.numel() * 32 * 32

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        for name in ("columns", "kept"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict[prefix + name].clone())
            else:
                others[2].append(prefix + name)  # the missing keys
        super()._load_from_state_dict(state_dict, prefix, *others)
