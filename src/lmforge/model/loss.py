"""Cross-entropy of the output matrix without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# hidden (N,D), weight (V,D), targets (N,), tokens whose logits exist at once, z-loss → nats, a scalar
CrossEntropy = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]


def loss_chunk(width: int, device: str = "cpu") -> int:
    """Tokens whose logits exist at once. A narrow network's output matrix is so small that the logits are what goes
    through the caches: 128 tokens take a processor 0.85 of the time of 512 at width 128, and more at 384
    (docs/internals/log.md).
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
            grad = torch.softmax(logits, -1, out=logits)  # softmax − one-hot, where the logits were
            # log Σ exp(logits): the largest share is at least 1/V, so its log is exact
            spread = top - grad.amax(-1, keepdim=True).log()
            total += (spread - right)[:, 0].mul(counted).sum()
            if d_hidden is None and d_weight is None:
                continue
            if z_loss:
                grad.mul_(1 + 2 * z_loss * spread)
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad = grad.to(weight.dtype)
            if d_hidden is not None:  # a token that does not count is left out of the small factors, not of the logits
                torch.mm(grad, weight, out=d_hidden[start : start + chunk]).mul_(counted[:, None])
            if d_weight is not None:
                piece = piece * counted[:, None]
                if d_weight.dtype == grad.dtype:
                    torch.addmm(d_weight, grad.t(), piece, out=d_weight)
                else:
                    d_weight += grad.t() @ piece
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
