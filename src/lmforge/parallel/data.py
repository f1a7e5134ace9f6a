"""Gradients summed over processes while the backward pass still makes others.

    backward:  … ─▶ grad of block 2 ─▶ grad of block 1 ─▶ grad of embedding
    messages:            └ bucket 0 full: its sum begins ──────▶ └ bucket 1 …          finish: wait, copy back

Li et al. 2020, "PyTorch Distributed: Experiences on accelerating data parallel training", section 3.2.3. Buckets are
filled in the order of the parameters from the last to the first, and begin in that order on every process, so that the
same gradients give the same bits and no two processes wait for different messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 4 << 20  # of gradients that travel together: large enough that latency does not count


class Bucket:
    """Gradients of some parameters, side by side, and after them a 1 for each that has one."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: Any) -> None:
        self.parameters, self.group = parameters, group
        self.sizes = [parameter.numel() for parameter in parameters]
        self.missing = len(parameters)
        self.flat: Tensor | None = None
        self.work: Any = None

    def begin(self) -> None:
        """Start the sum over the group."""
        first = self.parameters[0]
        flat = torch.zeros(sum(self.sizes) + len(self.sizes), dtype=first.dtype, device=first.device)
        pieces = flat[: sum(self.sizes)].split(self.sizes)
        for index, (parameter, piece) in enumerate(zip(self.parameters, pieces, strict=True)):
            if parameter.grad is not None:
                piece.copy_(parameter.grad.reshape(-1))
                flat[sum(self.sizes) + index] = 1
        self.flat, self.work = flat, dist.all_reduce(flat, group=self.group, async_op=True)

    def finish(self) -> None:
        """Wait for the sum; every parameter that has a gradient on some process gets it."""
        assert self.flat is not None
        wait_for_sum(self.work, self.group)
        pieces = self.flat[: sum(self.sizes)].split(self.sizes)
        there = self.flat[sum(self.sizes) :].tolist()
        for parameter, piece, having in zip(self.parameters, pieces, there, strict=True):
            if not having:
                continue
            if parameter.grad is None:
                parameter.grad = piece.view_as(parameter).clone()
            else:
                parameter.grad.copy_(piece.view_as(parameter))
        self.flat, self.work, self.missing = None, None, len(self.parameters)


def wait_for_sum(work: Any, group: Any) -> None:
    """Until a sum over a group is there; a function of its own, so that a stack tells what is waited for (`lost`)."""
    work.wait()


class OverlappedSum:
    """The sum of gradients over groups of processes, begun as they are made."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], group_of: Callable[[int], Any], size: int = BUCKET_BYTES
    ) -> None:
        """`group_of(i)`: the group over which parameter i is summed; None: it is not."""
        self.buckets: list[Bucket] = []
        self.armed, self.next = False, 0
        self._bucket_of: dict[int, Bucket] = {}
        open_buckets: dict[tuple[int, torch.dtype], list[nn.Parameter]] = {}
        groups: dict[int, Any] = {}

        def close(key: tuple[int, torch.dtype]) -> None:
            bucket = Bucket(open_buckets.pop(key), groups[key[0]])
            self.buckets.append(bucket)
            self._bucket_of |= {id(parameter): bucket for parameter in bucket.parameters}

        for index in reversed(range(len(parameters))):
            parameter, group = parameters[index], group_of(index)
            if group is None or not parameter.requires_grad:
                continue
            key = id(group), parameter.dtype
            groups[id(group)] = group
            open_buckets.setdefault(key, []).append(parameter)
            if sum(each.numel() * each.element_size() for each in open_buckets[key]) >= size:
                close(key)
        for key in list(open_buckets):
            close(key)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._made)
            for parameter in parameters
            if id(parameter) in self._bucket_of
        ]

    def arm(self) -> None:
        """The backward pass that comes now is the last of this step."""
        self.armed = bool(self.buckets)

    def finish(self) -> None:
        """After the backward pass: begin what is left, and wait for all."""
        self.armed = False
        for bucket in self.buckets[self.next :]:
            bucket.begin()
        for bucket in self.buckets:
            bucket.finish()
        self.next = 0

    def close(self) -> None:
        """Follow the parameters no longer."""
        for hook in self._hooks:
            hook.remove()

    def _made(self, parameter: Tensor) -> None:
        if not self.armed:
            return
        self._bucket_of[id(parameter)].missing -= 1
        while self.next < len(self.buckets) and self.buckets[self.next].missing == 0:
            self.buckets[self.next].begin()
            self.next += 1
