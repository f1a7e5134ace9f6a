"""Exchanges inside a pass, each with its gradient.

    forward                                  backward                          where
    all_tokens   parts of tokens → all       sums of all → own part            into a matrix that is cut
    own_tokens   sums of all → own part      parts → all                       out of it
    alike        nothing                     sum                               into it, where all have all tokens
    summed       sum                         nothing                           out of it
    spread_out   parts of tokens → all       own part (alike on all)           into routers, which all compute alike
    taken        own part of all             parts → all                       out of them

Narayanan et al. 2021 ("Megatron-LM"), section 2.3, f and g; Korthikanti et al. 2022, section 4.2.2, ḡ and g.
Tokens are the last dimension but one; every process of the group has equally many.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def joined(x: Tensor, group: Any) -> Tensor:
    """Each process's tokens (…,T/n,D) → all (…,T,D)."""
    count = dist.get_world_size(group)
    first = x.movedim(-2, 0).contiguous()
    whole = first.new_empty(count * first.shape[0], *first.shape[1:])
    dist.all_gather_into_tensor(whole, first, group=group)
    return whole.movedim(0, -2).contiguous()


def summed_part(x: Tensor, group: Any) -> Tensor:
    """Every process's summand of all tokens (…,T,D) → this one's tokens of the sum (…,T/n,D)."""
    count = dist.get_world_size(group)
    first = x.movedim(-2, 0).contiguous()
    part = first.new_empty(first.shape[0] // count, *first.shape[1:])
    dist.reduce_scatter_tensor(part, first, group=group)
    return part.movedim(0, -2).contiguous()


def part_of_tokens(x: Tensor, group: Any) -> Tensor:
    """All tokens (…,T,D) → this process's (…,T/n,D)."""
    length = x.shape[-2] // dist.get_world_size(group)
    return x.narrow(-2, dist.get_rank(group) * length, length).contiguous()


def total(x: Tensor, group: Any) -> Tensor:
    """The sum over a group, in memory of its own."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


def _same(x: Tensor, group: Any) -> Tensor:
    return x.view_as(x)


class _Exchange(torch.autograd.Function):
    """One function forward, another backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, there: Any, back: Any) -> Tensor:
        ctx.group, ctx.back = group, back
        result: Tensor = there(x, group)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.group), None, None, None


def _exchange(x: Tensor, group: Any, there: Any, back: Any) -> Tensor:
    result: Tensor = _Exchange.apply(x, group, there, back)  # type: ignore[no-untyped-call]
    return result


def all_tokens(x: Tensor, group: Any) -> Tensor:
    """(…,T/n,D) → (…,T,D); what comes back is a summand on each process."""
    return _exchange(x, group, joined, summed_part)


def own_tokens(x: Tensor, group: Any) -> Tensor:
    """Summands (…,T,D) → (…,T/n,D) of their sum."""
    return _exchange(x, group, summed_part, joined)


def alike(x: Tensor, group: Any) -> Tensor:
    """x, the same on all, whose gradient is a summand on each process."""
    return _exchange(x, group, _same, total)


def summed(x: Tensor, group: Any) -> Tensor:
    """Summands → their sum, whose gradient is the same on all."""
    return _exchange(x, group, total, _same)


def spread_out(x: Tensor, group: Any) -> Tensor:
    """(…,T/n,D) → (…,T,D), of which all make the same: the gradient is the same on all."""
    return _exchange(x, group, joined, part_of_tokens)


def taken(x: Tensor, group: Any) -> Tensor:
    """(…,T,D), the same on all → (…,T/n,D)."""
    return _exchange(x, group, part_of_tokens, joined)
