"""The feed-forward part of a block and its activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.config import GPTConfig
from lmforge.model.low_rank import linear


class _ReluSquared(torch.autograd.Function):
    """max(0, x)², keeping only max(0, x) for the gradient 2·max(0, x) (So et al. 2021, section 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Any shape → same shape."""
        positive = torch.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """d/dx."""
        (positive,) = ctx.saved_tensors
        grad: Tensor = gradient * positive
        return grad.mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """max(0, x)², any shape (So et al. 2021, section 4)."""
    result: Tensor = _ReluSquared.apply(x)  # type: ignore[no-untyped-call]
    return result


class FeedForward(nn.Module):
    """FF(x) = act(x W1 + b1) W2 + b2, act = max(0, ·) by default (Vaswani et al. 2017, eq. 2); relu2: So et al. 2021;
    swiglu, whose W1 makes gate and input side by side: silu(x W_g) · (x W_i) (Shazeer 2020, eq. 6); geglu, with the
    tanh form of gelu in the place of silu (eq. 5)."""

    def __init__(self, config: GPTConfig, units: int, up_rank: int = 0, down_rank: int = 0) -> None:
        super().__init__()
        self.activation = config.activation
        wide = units * (2 if config.gated else 1)
        self.up = linear(config.d_model, wide, config.biases, up_rank)
        self.down = linear(units, config.d_model, config.biases, down_rank)

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) → (…,D)."""
        result: Tensor = self.down(self.activated(self.up(x)))
        return result

    def activated(self, hidden: Tensor) -> Tensor:
        """What `up` gave → what `down` takes: (…,F), or where it is gated (…,2F), → (…,F)."""
        if self.activation == "relu":
            return F.relu(hidden)
        if self.activation == "relu2":
            return relu_squared(hidden)
        if self.activation == "swiglu":
            gate, hidden = hidden.chunk(2, -1)
            return F.silu(gate) * hidden
        if self.activation == "geglu":
            gate, hidden = hidden.chunk(2, -1)
            return F.gelu(gate, approximate="tanh") * hidden
        return F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")
