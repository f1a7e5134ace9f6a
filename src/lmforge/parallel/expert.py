"""Experts of a layer over processes: tokens are sent to the process that has the expert they chose, and come back.

    copies sorted by expert (N·k,D) ─all-to-all─▶ by process, then by expert ─sorted─▶ own experts ─▶ ─all-to-all─▶ back

Lepikhin et al. 2020, "GShard", section 3.2, without its capacity: parts are as uneven as the choices, and no token is
dropped. Each process has rows of its own, and all run the same number of micro-batches: what they run at once is one
micro-batch, over whose tokens loads are counted and balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.experts import Dispatch, Experts, gather_results, run_experts, spread_copies
from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Spread, even_parts


def apply_expert(model: GPT, mesh: Mesh, spread: Spread) -> None:
    """Leave this process its experts, and send tokens to those that others have. Enters the experts' parameters as
    `spread.enter(name, own="expert")`."""
    group = mesh.group("expert")
    for name, module in model.named_modules():
        if not isinstance(module, Experts):
            continue
        own = even_parts(module.count, mesh.sizes["expert"])[mesh.places["expert"]]
        for number in range(module.count):
            if number not in own:
                del module.experts._modules[str(number)]  # the others keep their names
        for inner, _ in module.experts.named_parameters():
            spread.enter(f"{name}.experts.{inner}", own="expert")
        module.dispatch = dispatch_over(group, module.count)


def count_together(model: GPT, mesh: Mesh) -> None:
    """Loads of experts are those of all processes that run one micro-batch together."""
    group = mesh.group("expert", "context")

    def together(load: Tensor) -> Tensor:
        total = load.clone()
        dist.all_reduce(total, group=group)
        return total

    for module in model.modules() if group is not None else ():
        if isinstance(module, Experts):
            module.together = together


def dispatch_over(group: Any, count: int) -> Dispatch:
    """As `model.experts.dispatch_here`, with `count` experts in equal parts over the processes of a group."""
    size = dist.get_world_size(group)

    def dispatch(x: Tensor, chosen: Tensor, weights: Tensor, experts: Sequence[nn.Module]) -> Tensor:
        copies, order, back, load = spread_copies(x, chosen, count)
        arriving = torch.empty_like(load)  # by process it comes from, then by own expert
        dist.all_to_all_single(arriving, load, group=group)
        sent, received = (each.view(size, -1).sum(1).tolist() for each in (load, arriving))
        there = exchanged(copies, received, sent, group)
        by_expert = (torch.arange(count, device=x.device) % len(experts)).repeat_interleave(arriving)
        place = by_expert.argsort(stable=True)
        given = there[place]
        made = run_experts(given, arriving.view(size, -1).sum(0), experts) if len(given) else given
        returned = made[torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=x.device))]
        return gather_results(exchanged(returned, sent, received, group), weights, order, back)

    return dispatch


def exchanged(x: Tensor, receive: list[int], send: list[int], group: Any) -> Tensor:
    """Rows of x (N,D), of which process i of the group gets the next `send[i]` → what all send here, `receive[i]` rows
    from process i."""
    result: Tensor = _Exchanged.apply(x, receive, send, group)  # type: ignore[no-untyped-call]
    return result


class _Exchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, receive: list[int], send: list[int], group: Any) -> Tensor:
        ctx.receive, ctx.send, ctx.group = receive, send, group
        room = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(room, x.contiguous(), receive, send, group=group)
        return room

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        room = gradient.new_empty(sum(ctx.send), *gradient.shape[1:])
        dist.all_to_all_single(room, gradient.contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return room, None, None, None


def as_many(mesh: Mesh, pieces: list[range]) -> list[range]:
    """A process's micro-batches, as many as the others of its group have: the largest are halved, and where none can
    be, empty ones are added. Processes whose experts need each other have to run equally many."""
    group = mesh.group("expert")
    if group is None:
        return pieces
    most = torch.tensor(len(pieces), device=mesh.device)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    pieces = list(pieces)
    while len(pieces) < int(most):
        largest = max(range(len(pieces)), key=lambda i: len(pieces[i]), default=None)
        if largest is None or len(pieces[largest]) < 2:
            end = pieces[-1].stop if pieces else 0
            pieces.append(range(end, end))
            continue
        whole = pieces[largest]
        middle = whole.start + (len(whole) + 1) // 2
        pieces[largest : largest + 1] = [range(whole.start, middle), range(middle, whole.stop)]
    return pieces
