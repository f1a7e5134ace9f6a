"""Experts: each token goes through the few feed-forward networks that a router picks for it; none is ever dropped.

    x (N,D) ─router─▶ logits (N,X) ─top k of logits + bias─▶ sorted by expert ─▶ one product after another ─▶ weighted sum (N,D)

X experts share a layer's `d_ff` units. There is no capacity: an expert takes as many tokens as choose it. What keeps the load even is one of
  bias   a bias on the choice alone, moved against the load (Wang et al. 2024, "Auxiliary-loss-free load balancing"). It is a parameter whose
         gradient is its load above the mean, so AdamW moves it by about its rate each step, and micro-batches, replicas and ranks
         sum its gradient like any other;
  loss   X·Σ f_i P_i (Fedus et al. 2021, eq. 4).
A z-loss keeps the router's logits small (Zoph et al. 2022, eq. 5). Router losses add gradients to a step and nothing to the loss it reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.attention import Place
from lmforge.model.config import GPTConfig
from lmforge.model.functions import FeedForward
from lmforge.model.packing import rearrange

BALANCE_LOSS, ROUTER_Z_LOSS = 0.01, 0.001  # weights per token, against nats (Fedus et al. 2021; Zoph et al. 2022)
BIAS_GRADIENT = 1e-3  # AdamW does not see the size of a gradient; the clip does, so it is kept small
Dispatch = Callable[[Tensor, Tensor, Tensor, Sequence[nn.Module]], Tensor]


def dispatch_here(x: Tensor, chosen: Tensor, weights: Tensor, experts: Sequence[nn.Module]) -> Tensor:
    """x (N,D), the experts chosen for each token (N,k) and their weights → Σ weight · expert(x) (N,D), all experts on this device."""
    tokens, active = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    counts = torch.bincount(chosen.flatten(), minlength=len(experts)).tolist()
    copies = rearrange(x.repeat_interleave(active, 0), order, back)
    results = [expert(piece) for expert, piece in zip(experts, copies.split(counts), strict=True) if len(piece)]
    y = rearrange(torch.cat(results), back, order).view(tokens, active, -1)
    return (y * weights.unsqueeze(-1).to(y.dtype)).sum(1)


def leave_scale(loss: Tensor, place: Place) -> Tensor:
    """The loss unchanged; its backward pass, which comes first, leaves its own gradient in `place` for the routers."""
    result: Tensor = _LeaveScale.apply(loss, place)  # type: ignore[no-untyped-call]
    return result


class _LeaveScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, place: Place) -> Tensor:
        ctx.place = place
        return loss.view_as(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.place.scale = gradient
        return gradient, None


class Experts(nn.Module):
    """The feed-forward part of a block, as experts. `dispatch` is a hook: expert parallelism puts its own in its place."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.active, self.balance = layer, config.experts_active, config.balance
        width = config.d_ff // config.experts
        self.router = nn.Linear(config.d_model, config.experts, bias=False)
        self.choice_bias = nn.Parameter(torch.zeros(config.experts)) if config.balance == "bias" else None
        self.experts = nn.ModuleList(FeedForward(config, width) for _ in range(config.experts))
        self.shared = FeedForward(config, width * config.experts_shared) if config.experts_shared else None
        self.dispatch: Dispatch = dispatch_here

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """(B,T,D) → (B,T,D)."""
        flat = x.flatten(0, -2)
        logits = self.router(flat).float()
        scores = logits.softmax(-1)
        bias = self.choice_bias
        chosen = (logits if bias is None else logits + bias.float()).detach().topk(self.active, -1).indices
        weights = scores.gather(-1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        y = self.dispatch(flat, chosen, weights, list(self.experts))
        if self.shared is not None:
            y = y + self.shared(flat)
        load = torch.bincount(chosen.flatten(), minlength=len(self.experts))
        place.loads[self.layer] = load
        if torch.is_grad_enabled():
            share = load * (len(self.experts) / self.active)  # what each expert's load would be a part of, were all equal: N
            losses = ROUTER_Z_LOSS * logits.logsumexp(-1).square().sum()
            if self.balance == "loss":
                losses = losses + BALANCE_LOSS * (share / len(flat) * scores.sum(0)).sum()
            y = _AlsoLearn.apply(y, losses, bias, BIAS_GRADIENT * (share - len(flat)), place)  # type: ignore[no-untyped-call]
        return y.view(x.shape)


class _AlsoLearn(torch.autograd.Function):
    """y unchanged; on the way back the router's losses and bias get their gradients, in the scale that the loss itself has."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, losses: Tensor, bias: Tensor | None, slope: Tensor, place: Place) -> Tensor:
        ctx.save_for_backward(slope, losses)
        ctx.place, ctx.biased = place, bias is not None
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slope, losses = ctx.saved_tensors
        scale = ctx.place.scale if ctx.place.scale is not None else torch.zeros_like(losses)
        return gradient, scale.to(losses.dtype), slope * scale if ctx.biased else None, None, None
