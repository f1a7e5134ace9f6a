"""LayerNorm and RMSNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.model.config import GPTConfig


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019, eq. 4), with a learned gain: `weight` plus
    `offset`. `eps` keeps it from dividing by 0."""

    def __init__(self, width: int, kind: str, bias: bool, eps: float | None = None, offset: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        self.eps = eps or (1e-5 if kind == "layernorm" else 1e-6)
        self.offset = offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and kind == "layernorm" else None

    @property
    def gain(self) -> Tensor:
        """What the normalised vector is multiplied by (width,)."""
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        if self.kind == "layernorm":
            return F.layer_norm(x, self.weight.shape, self.gain, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.gain, self.eps)


def norm_of(config: GPTConfig, width: int | None = None, bias: bool | None = None) -> Norm:
    """The norm of a network: over `width` channels, by default all of its vectors."""
    bias = config.has_norm_biases if bias is None else bias
    return Norm(width or config.d_model, config.norm, bias, config.norm_eps, config.norm_offset)
