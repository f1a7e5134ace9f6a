"""Several copies of the network in one process that share their weights, each run by a thread of its own on its own
rows.

    rows ─┬─ thread 1: model   ─▶ gradients ─┐
          └─ thread 2: replica ─▶ gradients ─┴─▶ sum, in order, in the model

On a CPU this beats one network on several OpenMP threads: nothing waits at a barrier inside every small operation, and
a busy neighbour slows one thread, not all of them (with barriers two threads beside another process fell to a tenth;
docs/internals/log.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

Result = TypeVar("Result")


class Replicas:
    """`count` networks over one set of weights. With one, everything happens in the calling thread."""

    def __init__(self, model: nn.Module, count: int, threads: int) -> None:
        """`threads` is what the calling thread uses outside of `run` (and inside it when `count` is 1)."""
        self.models, self.threads = [model], threads
        for _ in range(count - 1):
            replica = copy.deepcopy(model)
            for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
                own.data = shared.data
            self.models.append(replica)
        self.pool = ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) if count > 1 else None
        torch.set_num_threads(threads)

    def run(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        """Give each network its share of `rows`; `work` leaves gradients in it. Afterwards their sum is in the first
        network.

        The order of the sum is fixed, so that the same rows give the same bits every time.
        """
        count = min(len(self.models), len(rows))
        shares = [
            range(rows.start + len(rows) * i // count, rows.start + len(rows) * (i + 1) // count) for i in range(count)
        ]
        if self.pool is None or count == 1:
            return [work(self.models[0], rows)]
        torch.set_num_threads(1)
        try:
            futures = [self.pool.submit(work, model, share) for model, share in zip(self.models, shares, strict=False)]
            results = [future.result() for future in futures]
        finally:
            torch.set_num_threads(self.threads)
        for model in self.models[1:count]:
            pairs = [
                (total.grad, part.grad)
                for total, part in zip(self.models[0].parameters(), model.parameters(), strict=True)
                if total.grad is not None and part.grad is not None
            ]
            if pairs:
                torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
            model.zero_grad(set_to_none=True)
        return results

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown()
