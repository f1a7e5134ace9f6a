"""Which process this is among how many, and what they exchange.

One process is the distributed path with one rank: every method works there too and moves nothing. torchrun (or Slurm)
starts the ranks.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore

from lmforge.errors import InputError
from lmforge.parallel import agree

GROUP_SECONDS = 300.0  # that ranks which compute together wait for each other
_joined = itertools.count()  # process groups of this process, each with keys of its own in the store


class Mesh:
    """The processes of a run along the data axis: `rank` of `world`, each on its own `device`."""

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks (each rank has divided by the global token count already).

        Gradients travel in one flat tensor per data type, so that a small network costs one message.
        """
        if self.world == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def total(self, *values: float) -> list[float]:
        """The sums of some numbers over all ranks, in float64."""
        numbers = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            numbers = numbers.to(self.device)
            dist.all_reduce(numbers)
        return [float(number) for number in numbers]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of ranks; small plain things."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (what JSON can hold) on every rank, however long rank 0 takes to come by it."""
        return agree.broadcast_from_main(value) if self.world > 1 else value

    def broadcast_tensor(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on every rank, which has one of the same shape and type."""
        if self.world == 1:
            return tensor
        there = tensor.to(self.device)
        dist.broadcast(there, 0)
        return there.to(tensor.device)

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What rank 0's `work` returns (what JSON can hold), on every rank; its failure ends all."""
        return agree.on_main(work) if self.world > 1 else work()

    def wait(self) -> None:
        """Until every rank is here, however long one of them works alone before."""
        if self.world > 1:
            agree.wait_for_main()

    def close(self) -> None:
        """Leave the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_mesh(data: int | None = None) -> Mesh:
    """The mesh that the launcher's environment (WORLD_SIZE, RANK, LOCAL_RANK) describes; one rank without a launcher.

    Ranks may come at any time: the first waits without a limit, and only then do they form the group.

    Raises:
        InputError: `parallel.data` asks for another number of processes than there are.
    """
    world, rank = agree.world(), agree.rank()
    if data is not None and data != world:
        raise InputError(
            f"parallel.data: {data} processes asked for, {world} started; run: torchrun --nproc-per-node {data} -m "
            "lmforge.cli …"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if world > 1 and not dist.is_initialized():
        agree.wait_for_main()
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"lmforge/group/{next(_joined)}", agree.launcher_store()),
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=GROUP_SECONDS),
        )
    return Mesh(rank, world, device)
