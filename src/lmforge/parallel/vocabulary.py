"""Embedding and loss of a vocabulary that processes share: each has some rows of the matrix, and nobody all logits.

loss:  hidden (N,D) · own rows ─▶ logits (N,V/n) ─▶ largest, Σ exp, the target's: three numbers a token travel
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.loss import CrossEntropy


class PartEmbedding(nn.Embedding):
    """Some rows of an embedding, from `first` on; vectors of others are zero, so that the sum over processes is the
    embedding."""

    first: int

    @classmethod
    def take(cls, whole: nn.Embedding, first: int) -> None:
        """Make an embedding, whose weight holds these rows only, one of this class in place."""
        part: Any = whole
        part.__class__, part.first = cls, first

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape → (…,D)."""
        own = ids - self.first
        elsewhere = (own < 0) | (own >= self.weight.shape[0])
        x = F.embedding(own.masked_fill(elsewhere, 0), self.weight)
        return x.masked_fill(elsewhere.unsqueeze(-1), 0)


class _CrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with this process's rows of the weight (V/n,D), the first of which is `first`. The
    gradient of `hidden` is a summand on each process."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_loss: float, first: int, group: Any
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        exact = torch.promote_types(weight.dtype, torch.float32)
        d_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needs_weight else None
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk):
            piece, wanted = hidden[start : start + chunk], targets[start : start + chunk]
            counted, own = wanted >= 0, wanted - first
            here = counted & (own >= 0) & (own < weight.shape[0])
            index = own.masked_fill(~here, 0)[:, None]
            logits = (piece @ weight.t()).to(exact)
            top = logits.amax(-1)
            dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
            right = (logits.gather(1, index)[:, 0] - top) * here
            grad = logits.sub_(top[:, None]).exp_()
            sums = torch.stack((grad.sum(-1), right))
            dist.all_reduce(sums, group=group)
            loss += (sums[0].log() - sums[1]).mul(counted).sum()
            if d_hidden is None and d_weight is None:
                continue
            grad.div_(sums[0][:, None])
            if z_loss:
                grad.mul_(1 + 2 * z_loss * (sums[0].log() + top)[:, None])
            grad.scatter_add_(1, index, -here[:, None].to(grad.dtype))
            grad = grad.to(weight.dtype)
            if d_hidden is not None:
                torch.mm(grad, weight, out=d_hidden[start : start + chunk]).mul_(counted[:, None])
            if d_weight is not None:
                d_weight += grad.t() @ (piece * counted[:, None])
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if each is None else each.mul_(gradient) for each in ctx.saved_tensors), *(None,) * 5


def vocabulary_cross_entropy(first: int, group: Any) -> CrossEntropy:
    """A `linear_cross_entropy` for this process's rows of the weight, from `first` on."""

    def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_loss: float = 0.0) -> Tensor:
        if hidden.device.type == "cpu":
            counted = targets >= 0
            if not bool(counted.all()):
                hidden, targets = hidden[counted], targets[counted]
        if torch.is_autocast_enabled(hidden.device.type):
            hidden, weight = (x.to(torch.get_autocast_dtype(hidden.device.type)) for x in (hidden, weight))
        weight = weight.to(hidden.dtype)
        loss: Tensor = _CrossEntropy.apply(hidden.contiguous(), weight, targets, chunk, z_loss, first, group)  # type: ignore[no-untyped-call]
        return loss

    return cross_entropy


def whole_logits(part: Tensor, rows: list[int], group: Any) -> Tensor:
    """Logits of each process's rows (…,V/n), of which process i has `rows[i]` → all (…,V). For scoring; no gradient."""
    most = max(rows)
    padded = F.pad(part.detach(), (0, most - part.shape[-1])).contiguous()
    whole = padded.new_empty(len(rows), *padded.shape)
    dist.all_gather_into_tensor(whole, padded.unsqueeze(0), group=group)
    return torch.cat([each[..., :count] for each, count in zip(whole.unbind(), rows, strict=True)], -1)
