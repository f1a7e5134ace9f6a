"""Which stage runs which micro-batch when: torch's schedules by the names that a recipe has for them.

    gpipe        all forward, then all backward (Huang et al. 2019)
    1f1b         one forward, one backward; few micro-batches are open at a time (Narayanan et al. 2019, "PipeDream")
    interleaved  several stages a process, smaller bubbles (Narayanan et al. 2021, section 2.2)
    zero-bubble  interleaved, with gradients of weights put off into the bubbles (Qi et al. 2023, ZB1P)
    zbv          the same with the two stages of a process placed in a V (Qi et al. 2023, section 6)

torch puts gradients of weights off by running the graph a second time, which own autograd functions do not bear. Here
the matrices do it themselves (`PutOff`): in the backward pass they note what their weight's gradient is a product of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from lmforge.errors import InputError
from lmforge.model.hooks import weights_may_be_read


class Kind(NamedTuple):
    """One schedule: torch's class, how many stages a process has with it by default and at most, and whether it puts
    gradients of weights off."""

    schedule: Any
    stages: int
    most: int
    split: bool = False
    vee: bool = False


MANY = 1 << 20
KINDS = {
    "gpipe": Kind(ScheduleGPipe, 1, 1),
    "1f1b": Kind(Schedule1F1B, 1, 1),
    "interleaved": Kind(ScheduleInterleaved1F1B, 2, MANY),
    "zero-bubble": Kind(ScheduleInterleavedZeroBubble, 2, MANY, split=True),
    "zbv": Kind(ScheduleZBVZeroBubble, 2, 2, split=True, vee=True),
}


def stages_of(name: str, ranks: int, each: int | None = None) -> list[list[int]]:
    """The stages of each process of a pipeline; `each` of them, or what the schedule has by default.

    Raises:
        InputError: an unknown schedule, or one that does not take so many stages.
    """
    if name not in KINDS:
        raise InputError(f"parallel.pipeline_schedule: {name!r} is not known; there are {', '.join(KINDS)}")
    kind = KINDS[name]
    each = each or kind.stages
    if each > kind.most or (kind.vee and each != kind.stages):
        raise InputError(
            f"parallel.pipeline_stages: {name} has {kind.stages} a process, not {each}; leave it out or take "
            "pipeline_schedule = 'interleaved'"
        )
    if kind.vee:
        return [[rank, 2 * ranks - 1 - rank] for rank in range(ranks)]
    return [[rank + ranks * i for i in range(each)] for rank in range(ranks)]


def micro_batches_of(name: str, ranks: int, count: int) -> int:
    """The least number of micro-batches, `count` or more, that a schedule takes; empty ones make it up."""
    count = max(count, ranks if name == "1f1b" else 1)
    while name in ("interleaved", "zero-bubble") and count % max(1, count // ranks):
        count += 1
    return count


class PutOff:
    """Gradients of matrices whose factors are known and whose product is put off."""

    def __init__(self) -> None:
        self.noted: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def take_over(self, modules: Sequence[nn.Module]) -> None:
        """Let the plain matrices in these modules note their gradients here. Those that something follows or has spread
        over devices compute theirs in the backward pass as before."""
        for module in modules:
            for part in module.modules():
                if type(part) is nn.Linear and weights_may_be_read(part):
                    part.__class__ = _PuttingOff
                    part.put_off = self  # type: ignore[assignment]

    def builder(self) -> Callable[[], None]:
        """What computes the gradients noted since the last call (torch's `dw_builder`)."""
        noted, self.noted = self.noted, []

        @torch.no_grad()
        def products() -> None:
            for weight, above, below in noted:
                gradient = (above.t() @ below).to(weight.dtype)
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
            noted.clear()

        return products


class _PuttingOff(nn.Linear):
    """x Wᵀ + b, whose backward pass leaves the gradient of W for later."""

    put_off: PutOff

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y: Tensor = _Product.apply(x.to(dtype), self.weight, self.put_off)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, put_off: PutOff) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.put_off, ctx.weight = put_off, weight
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        above = gradient.to(x.dtype)
        ctx.put_off.noted.append((ctx.weight, above.flatten(0, -2), x.flatten(0, -2)))
        return above @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None, None, None
