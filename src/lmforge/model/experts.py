"""Experts: each token goes through the few feed-forward networks that a router picks for it; none is ever dropped.

    x (N,D) ─router─▶ logits (N,X) ─top k of logits + bias─▶ copies sorted by expert (N·k,D)
                      ─grouped products─▶ (N·k,D) ─weighted sum─▶ (N,D)

X experts share a layer's `d_ff` units. A token's k weights sum to SCALE·k, and all experts begin equal (`alike`): the
layer begins as a dense one. There is no capacity: an expert takes as many tokens as choose it. What keeps the load even
is one of

    bias   a bias on the choice alone, moved against the load (Wang et al. 2024, "Auxiliary-loss-free load balancing"),
           beside the loss below. It is a parameter whose gradient is its load above the mean, so AdamW moves it by
           BIAS_STEP times its rate each step, and micro-batches, replicas and ranks sum its gradient like any other
    loss   X·Σ f_i P_i (Fedus et al. 2021, eq. 4)

A z-loss keeps the router's logits small (Zoph et al. 2022, eq. 5). Router losses add gradients to a step and nothing to
the loss it reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.cache import ForwardContext
from lmforge.model.config import GPTConfig
from lmforge.model.feed_forward import FeedForward
from lmforge.model.hooks import weights_may_be_read
from lmforge.model.measure import macs_per_token

# of what experts give, with weights that sum to how many they are (as in DeepSeek-V3, 2.5); 1 and 2 are worse
# (docs/internals/log.md)
SCALE = 1.5
# weight per token, against nats; 0.01 (Fedus et al. 2021) costs quality (docs/internals/log.md)
BALANCE_LOSS = {"bias": 0.001, "loss": 0.01}
ROUTER_Z_LOSS = 0.001  # likewise (Zoph et al. 2022)
BIAS_GRADIENT = 1e-3  # AdamW does not see the size of a gradient; the clip does, so it is kept small
ROUTER_SCALE = 3.0  # of logits over √D: AdamW moves a sum over D by up to D times its rate a step
# what AdamW's rate is to the bias: enough to follow the router; more sends tokens from expert to expert
# (docs/internals/log.md)
BIAS_STEP = 4.0
Dispatch = Callable[[Tensor, Tensor, Tensor, Sequence[nn.Module]], Tensor]


def dispatch_here(x: Tensor, chosen: Tensor, weights: Tensor, experts: Sequence[nn.Module]) -> Tensor:
    """x (N,D), the experts chosen for each token (N,k) and their weights → Σ weight · expert(x) (N,D), all experts on
    this device."""
    copies, order, back, load = spread_copies(x, chosen, len(experts))
    return gather_results(run_experts(copies, load, experts), weights, order, back)


def spread_copies(x: Tensor, chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N,D) and the experts chosen for each token (N,k), of `count` → copies sorted by expert (N·k,D), the order of
    the choices (N·k,), where each went (N·k,), and how many each expert takes (count,)."""
    picks = chosen.flatten()
    order = picks.argsort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    copies: Tensor = _Spread.apply(x, order, back, chosen.shape[1])  # type: ignore[no-untyped-call]
    return copies, order, back, torch.bincount(picks, minlength=count)


def gather_results(results: Tensor, weights: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """What experts made of copies (N·k,D), in the order of `spread_copies`, and weights (N,k) → Σ weight · result of
    each token (N,D)."""
    y: Tensor = _Gather.apply(results, weights.to(results.dtype), order, back)  # type: ignore[no-untyped-call]
    return y


def run_experts(copies: Tensor, load: Tensor, experts: Sequence[nn.Module]) -> Tensor:
    """Tokens sorted by expert (M,D), of which expert i takes load[i] → (M,D).

    Ordinary experts share one pass over the units: their products one after another on neighbouring slices (on a GPU
    one grouped product), the activation once. Experts that something has replaced or follows are called one by one.
    """
    parts = [part for part in experts if type(part) is FeedForward and weights_may_be_read(part)]
    ups = [part.up for part in parts if type(part.up) is nn.Linear]
    downs = [part.down for part in parts if type(part.down) is nn.Linear]
    if not len(ups) == len(downs) == len(experts):
        pieces = copies.split(load.tolist())
        return torch.cat([expert(piece) for expert, piece in zip(experts, pieces, strict=True) if len(piece)])
    return grouped_linear(parts[0].activated(grouped_linear(copies, load, ups)), load, downs)


def grouped_linear(x: Tensor, load: Tensor, layers: Sequence[nn.Linear], fused: bool | None = None) -> Tensor:
    """x (M,I), of whose rows layer i takes the next load[i] → (M,O). `fused` (default: bfloat16 on a GPU, for which the
    library has its grouped product) leaves the loads on the device; the library asks for widths of whole 16 bytes."""
    biases = [layer.bias for layer in layers]
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    if fused is None:
        wide = layers[0].in_features % 8 == layers[0].out_features % 8 == 0
        fused = x.is_cuda and dtype == torch.bfloat16 and wide and biases[0] is None and hasattr(F, "grouped_mm")
    if fused:
        weights = torch.stack([layer.weight for layer in layers]).to(dtype)
        result: Tensor = F.grouped_mm(x.to(dtype), weights.transpose(1, 2), offs=load.cumsum(0).to(torch.int32))
        return result
    pieces = x.split(load.tolist())
    return torch.cat(
        [F.linear(piece, layer.weight, layer.bias) for piece, layer in zip(pieces, layers, strict=True) if len(piece)]
    )


class _Spread(torch.autograd.Function):
    """x (N,D) → the copies that experts take, sorted by expert (N·k,D): x[order // k]. The gradient gathers too,
    instead of adding by index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, active: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.active = active
        return x[order // active]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return gradient[back].view(-1, ctx.active, gradient.shape[-1]).sum(1), None, None, None


class _Gather(torch.autograd.Function):
    """Results sorted by expert (N·k,D) and weights (N,k) → Σ weight · result of each token (N,D)."""

    @staticmethod
    def forward(ctx: Any, results: Tensor, weights: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(results, weights, order, back)
        return (weights.unsqueeze(1) @ results[back].view(*weights.shape, results.shape[-1]))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        results, weights, order, back = ctx.saved_tensors
        spread = gradient[order // weights.shape[1]]
        grad = (results * spread).sum(-1)[back].view_as(weights)
        return spread.mul_(weights.flatten()[order].unsqueeze(-1)), grad, None, None


def leave_scale(loss: Tensor, forward_ctx: ForwardContext) -> Tensor:
    """The loss unchanged; its backward pass, which comes first, leaves its own gradient in `place` for the routers."""
    result: Tensor = _LeaveScale.apply(loss, forward_ctx)  # type: ignore[no-untyped-call]
    return result


class _LeaveScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, forward_ctx: ForwardContext) -> Tensor:
        ctx.forward_ctx = forward_ctx
        return loss.clone()  # what shards a network does not like to get a view

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.forward_ctx.scale = gradient
        return gradient, None


def alone(load: Tensor) -> Tensor:
    """The load of the tokens that are here: there are no others."""
    return load


class Experts(nn.Module):
    """The feed-forward part of a block, as experts. Hooks: expert parallelism puts its own `dispatch` in its place, and
    leaves some of the experts; `together` adds up loads where other processes have more of a micro-batch's tokens."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.active, self.balance = layer, config.experts_active, config.balance
        shape = config.shape_of(layer)
        self.count = shape.experts  # those that other processes have included
        width, ranks = shape.d_ff // shape.experts, (shape.up_rank, shape.down_rank)
        self.router = nn.Linear(config.d_model, shape.experts, bias=False)
        self.choice_bias = nn.Parameter(torch.zeros(shape.experts)) if config.balance == "bias" else None
        self.experts = nn.ModuleList(FeedForward(config, width, *ranks) for _ in range(shape.experts))
        self.shared = FeedForward(config, width * config.experts_shared, *ranks) if config.experts_shared else None
        self.dispatch: Dispatch = dispatch_here
        self.together: Callable[[Tensor], Tensor] = alone

    def macs_per_token(self) -> int:
        """Multiplications of a token by the router, the experts that it is sent to and the shared one (`measure`)."""
        each = sum(map(macs_per_token, self.experts)) // len(self.experts)
        shared = 0 if self.shared is None else macs_per_token(self.shared)
        return macs_per_token(self.router) + self.active * each + shared

    @torch.no_grad()
    def alike(self) -> None:
        """All experts become the first: what the first steps teach, they teach all, and the router is moved by the task
        only when they differ (as where experts begin as copies of a trained layer, Komatsuzaki et al. 2023, "Sparse
        upcycling", section 3)."""
        first = self.experts[0].state_dict()
        for expert in self.experts[1:]:
            expert.load_state_dict(first)

    def forward(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """(B,T,D) → (B,T,D)."""
        flat = x.flatten(0, -2)
        logits = self.router(flat)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * (
            ROUTER_SCALE / math.sqrt(flat.shape[-1])
        )
        scores = logits.softmax(-1)
        bias = self.choice_bias
        chosen = (
            (logits if bias is None else logits + BIAS_STEP * bias.to(logits.dtype))
            .detach()
            .topk(self.active, -1)
            .indices
        )
        weights = scores.gather(-1, chosen)
        weights = weights * (SCALE * self.active / weights.sum(-1, keepdim=True))
        y = self.dispatch(flat, chosen, weights, list(self.experts))
        if self.shared is not None:
            y = y + self.shared(flat)
        load = torch.bincount(chosen.flatten(), minlength=self.count)
        loads = forward_ctx.loads[self.layer] = self.together(load)
        if torch.is_grad_enabled():
            # what each expert's load would be a part of, were all equal: N
            share = load * (self.count / self.active)
            losses = ROUTER_Z_LOSS * logits.logsumexp(-1).square().sum()
            if self.balance != "none":
                frequent = loads * (self.count / loads.sum().clamp(min=1))
                losses = losses + BALANCE_LOSS[self.balance] * (frequent * scores.sum(0)).sum()
            y = _AlsoLearn.apply(y, losses, bias, BIAS_GRADIENT * (share - len(flat)), forward_ctx)  # type: ignore[no-untyped-call]
        return y.view(x.shape)


class _AlsoLearn(torch.autograd.Function):
    """y unchanged; on the way back the router's losses and bias get their gradients, in the scale that the loss itself
    has."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, losses: Tensor, bias: Tensor | None, grad: Tensor, forward_ctx: ForwardContext
    ) -> Tensor:
        ctx.save_for_backward(grad, losses)
        ctx.forward_ctx, ctx.biased = forward_ctx, bias is not None
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad, losses = ctx.saved_tensors
        scale = ctx.forward_ctx.scale if ctx.forward_ctx.scale is not None else torch.zeros_like(losses)
        return gradient, scale.to(losses.dtype), grad * scale if ctx.biased else None, None, None
