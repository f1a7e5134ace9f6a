"""LayerNorm and RMSNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019, eq. 4), with a learned gain. `eps` keeps it from
    dividing by 0."""

    def __init__(self, width: int, kind: str, bias: bool, eps: float | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps or (1e-5 if kind == "layernorm" else 1e-6)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and kind == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        if self.kind == "layernorm":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
