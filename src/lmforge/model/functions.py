"""Small parts that every file of the network needs: norms, and functions that the library has no lean form of."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.config import GPTConfig


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
        slope: Tensor = gradient * positive
        return slope.mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """max(0, x)², any shape (So et al. 2021, section 4)."""
    result: Tensor = _ReluSquared.apply(x)  # type: ignore[no-untyped-call]
    return result


class FeedForward(nn.Module):
    """FF(x) = act(x W1 + b1) W2 + b2, act = max(0, ·) by default (Vaswani et al. 2017, eq. 2); relu2: So et al. 2021;
    swiglu, whose W1 makes gate and input side by side: silu(x W_g) · (x W_i) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: GPTConfig, units: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, units * (2 if config.activation == "swiglu" else 1), bias=config.biases)
        self.down = nn.Linear(units, config.d_model, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) → (…,D)."""
        result: Tensor = self.down(self.activated(self.up(x)))
        return result

    def activated(self, hidden: Tensor) -> Tensor:
        """What `up` gave → what `down` takes: (…,F), or with swiglu (…,2F), → (…,F)."""
        if self.activation == "relu":
            return F.relu(hidden)
        if self.activation == "relu2":
            return relu_squared(hidden)
        if self.activation == "swiglu":
            gate, hidden = hidden.chunk(2, -1)
            return F.silu(gate) * hidden
        return F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn each neighbouring pair of x (B,T,H,E), read as a complex number, by rotations (T,E/2) or (B,T,E/2): RoPE (Su
    et al. 2021, eq. 34).

    Pairs are (0,1), (2,3), … as in the paper. One complex product instead of five real passes.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.view_as_complex(x.to(exact).unflatten(-1, (-1, 2)))
    turned = pairs * rotations.unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def loss_chunk(width: int, device: str = "cpu") -> int:
    """Tokens whose logits exist at once. A narrow network's output matrix is so small that the logits are what goes
    through the caches: 128 tokens take a processor 0.85 of the time of 512 at width 128, and more at 384 (docs/log.md).
    Compiled code is unrolled chunk by chunk."""
    return 128 if width <= 128 and device == "cpu" and not torch.compiler.is_compiling() else 512


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in one pass over chunks of tokens, so that all logits never exist at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_loss: float) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        exact = torch.promote_types(weight.dtype, torch.float32)  # sums are never held in half precision
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs_weight else None
        total = torch.zeros((), dtype=exact, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            piece, wanted = hidden[start : start + chunk], targets[start : start + chunk]
            counted = wanted >= 0
            index = wanted.clamp(min=0)[:, None]
            logits = (piece @ weight.t()).to(exact)
            top, right = logits.amax(-1, keepdim=True), logits.gather(1, index)
            slope = torch.softmax(logits, -1, out=logits)  # softmax − one-hot, where the logits were
            # log Σ exp(logits): the largest share is at least 1/V, so its log is exact
            spread = top - slope.amax(-1, keepdim=True).log()
            total += (spread - right)[:, 0].mul(counted).sum()
            if d_hidden is None and d_weight is None:
                continue
            if z_loss:
                slope.mul_(1 + 2 * z_loss * spread)
            slope.scatter_add_(1, index, torch.full_like(index, -1, dtype=slope.dtype))
            slope = slope.to(weight.dtype)
            if d_hidden is not None:  # a token that does not count is left out of the small factors, not of the logits
                torch.mm(slope, weight, out=d_hidden[start : start + chunk]).mul_(counted[:, None])
            if d_weight is not None:
                piece = piece * counted[:, None]
                if d_weight.dtype == slope.dtype:
                    torch.addmm(d_weight, slope.t(), piece, out=d_weight)
                else:
                    d_weight += slope.t() @ piece
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden.mul_(gradient),
            None if d_weight is None else d_weight.mul_(gradient),
            None,
            None,
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_loss: float = 0.0) -> Tensor:
    """Σ −ln softmax(hidden · weightᵀ)[target] over tokens with target ≥ 0; hidden (N,D), weight (V,D), targets (N,) →
    scalar, nats.

    `z_loss` z adds the gradient of z·(log Σ exp(logits))² and nothing to the value (Chowdhery et al. 2022, section 5).
    Memory O(chunk·V) instead of O(N·V). Wijmans et al. 2024 ("Cut Your Losses"), section 4, without its gradient
    filtering. Tokens that do not count cost nothing on a CPU; elsewhere the number of rows has to be known beforehand.
    """
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        counted = targets >= 0
        if not bool(counted.all()):
            hidden, targets = hidden[counted], targets[counted]
    # cast once; products that write into what is there would not be cast at all
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (x.to(torch.get_autocast_dtype(hidden.device.type)) for x in (hidden, weight))
    hidden = hidden.contiguous()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight.to(hidden.dtype), targets, chunk, z_loss)  # type: ignore[no-untyped-call]
    return loss


def rotations(config: GPTConfig, length: int) -> Tensor:
    """RoPE's e^{i·t·θ_j} of the first `length` positions, (length,E/2) complex: θ_j = rope_base^{-2j/E} (Su et al.
    2021, eq. 15). Empty without RoPE.

    For a context s times the `rope_trained` one: linear divides all θ by s (Chen et al. 2023); ntk raises the base by
    s^{E/(E−2)}; yarn divides only the slow ones, between α = 1 and β = 32 turns within the trained context gradually,
    and sharpens attention by making queries and keys longer by 0.1·ln s + 1 (Peng et al. 2023, eq. 20 to 22 and section
    3.4).
    """
    if config.positions != "rope":
        return torch.empty(0)
    half = config.head_width // 2
    steps = torch.arange(half, dtype=torch.float64) / half
    stretch = config.context / config.rope_trained if config.rope_scaling != "none" else 1.0
    theta = config.rope_base**-steps
    size = 1.0
    if config.rope_scaling == "linear":
        theta = theta / stretch
    elif config.rope_scaling == "ntk":
        theta = (config.rope_base * stretch ** (half / max(half - 1, 1))) ** -steps
    elif config.rope_scaling == "yarn":
        turns = config.rope_trained * theta / (2 * math.pi)
        keep = ((turns - 1) / (32 - 1)).clamp(0, 1)
        theta = theta * (keep + (1 - keep) / stretch)
        size = 0.1 * math.log(stretch) + 1
    angles = torch.arange(length, dtype=torch.float64)[:, None] * theta
    return torch.polar(torch.full_like(angles, size), angles).to(torch.complex64)
