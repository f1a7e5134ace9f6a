"""Which process this is among how many, where it stands on the axes of a layout, and what processes exchange.

    pipeline × data × shard × expert × context × tensor = processes, in the order of ranks: the last axis is the
    innermost, so that those who exchange most are neighbours

One process is the distributed path with one rank: every method works there too and moves nothing. torchrun (or Slurm)
starts the ranks.
"""

from __future__ import annotations

import datetime
import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from lmforge.errors import InputError
from lmforge.parallel import agree
from lmforge.recipe.schema import Parallel

GROUP_SECONDS = 300.0  # that ranks which compute together wait for each other, where a recipe says nothing else
AXES = ("pipeline", "data", "shard", "expert", "context", "tensor")  # outermost first
DATA_AXES = ("data", "shard", "expert")  # along which processes have rows of their own
_joined = itertools.count()  # process groups of this process, each with keys of its own in the store


class Mesh:
    """The processes of a run: `rank` of `world`, each on its own `device`, and this one's place on each axis."""

    def __init__(
        self,
        rank: int,
        world: int,
        device: torch.device,
        sizes: Mapping[str, int] | None = None,
        limit: float = GROUP_SECONDS,
    ) -> None:
        """`sizes`: of the axes that have more than one process (default: all along "data"); `limit`: seconds that
        processes which compute together wait for each other."""
        self.rank, self.world, self.device, self.limit = rank, world, device, limit
        given = {"data": world} if sizes is None else sizes
        self.sizes = {axis: given.get(axis, 1) for axis in AXES}
        assert math.prod(self.sizes.values()) == world
        self.places = self.places_of(rank)
        self._groups: dict[tuple[str, ...], Any] = {}
        self._device_mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Into how many shares the rows of a batch are cut."""
        return self.size(*DATA_AXES)

    @property
    def data_rank(self) -> int:
        """Which of them is this process's."""
        return self.index(*DATA_AXES)

    def size(self, *axes: str) -> int:
        """Processes along some axes together."""
        return math.prod(self.sizes[axis] for axis in axes)

    def index(self, *axes: str) -> int:
        """This process among those along some axes, in the order of ranks."""
        return self._index(self.places, axes)

    def places_of(self, rank: int) -> dict[str, int]:
        """Where a rank stands on each axis."""
        places = {}
        for axis in reversed(AXES):
            rank, places[axis] = divmod(rank, self.sizes[axis])
        return places

    def ranks(self, *axes: str) -> list[int]:
        """The ranks that differ from this one along these axes alone, this one with them, in order."""
        return [
            rank
            for rank, places in ((rank, self.places_of(rank)) for rank in range(self.world))
            if all(places[axis] == self.places[axis] for axis in AXES if axis not in axes)
        ]

    def group(self, *axes: str) -> Any:
        """The process group of `ranks(*axes)`; None where it is this process alone. All of them ask for it at the same
        time the first time."""
        key = tuple(axis for axis in AXES if axis in axes and self.sizes[axis] > 1)
        if not key:
            return None
        if key not in self._groups:
            limit = datetime.timedelta(seconds=self.limit)
            self._groups[key] = (
                dist.group.WORLD
                if self.size(*key) == self.world
                else self.device_mesh.get_group(key[0])
                if len(key) == 1
                else dist.new_group(self.ranks(*key), timeout=limit, use_local_synchronization=True)
            )
        return self._groups[key]

    @property
    def device_mesh(self) -> DeviceMesh:
        """The axes of more than one process (and `shard`, so that there is one) as torch knows them, for parts of torch
        that take one; the group has to be there. An axis of one process would be a group with threads of its own."""
        if self._device_mesh is None:
            axes = [axis for axis in AXES if self.sizes[axis] > 1] or ["shard"]
            grid = torch.arange(self.world).view([self.sizes[axis] for axis in axes])
            self._device_mesh = DeviceMesh(self.device.type, grid, mesh_dim_names=tuple(axes))
            for group in self._device_mesh.get_all_groups():  # made with the library's limit, which is half an hour
                _set_pg_timeout(datetime.timedelta(seconds=self.limit), group)
        return self._device_mesh

    def total(self, *values: float) -> list[float]:
        """The sums of some numbers over data ranks, in float64."""
        numbers = torch.tensor(values, dtype=torch.float64)
        if self.data_size > 1:
            numbers = numbers.to(self.device)
            dist.all_reduce(numbers, group=self.group(*DATA_AXES))
        return [float(number) for number in numbers]

    def anyone(self, flag: bool) -> bool:
        """Whether it is set on some rank."""
        if self.world == 1:
            return flag
        number = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return bool(number)

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

    def _index(self, places: Mapping[str, int], axes: Iterable[str]) -> int:
        index = 0
        for axis in AXES:
            if axis in axes:
                index = index * self.sizes[axis] + places[axis]
        return index


def sum_together(gradients: Sequence[Tensor], group: Any) -> None:
    """Replace tensors by their sums over a group, in one message for each type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_type.setdefault(gradient.dtype, []).append(gradient)
    for alike in by_type.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in alike])
        dist.all_reduce(flat, group=group)
        for gradient, piece in zip(alike, flat.split([g.numel() for g in alike]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def sizes_of(settings: Parallel, world: int) -> dict[str, int]:
    """Processes along each axis, where `world` of them were started.

    Raises:
        InputError: the recipe's numbers make another number of processes.
    """
    sizes = {axis: getattr(settings, axis) for axis in AXES}
    others = math.prod(size for axis, size in sizes.items() if axis != "data")
    sizes["data"] = data = settings.data or max(1, world // others)
    if data * others == world:
        return sizes
    stated = [f"{axis} {size}" for axis, size in sizes.items() if size > 1 and (axis != "data" or settings.data)]
    if others == 1:
        asked = f"parallel.data: {data} processes asked for"
    elif settings.data:
        asked = f"parallel: {' × '.join(stated)} is {data * others} processes"
    else:
        asked = f"parallel: {' × '.join(stated)} asks for a multiple of {others} processes"
    raise InputError(f"{asked}, {world} started; run: torchrun --nproc-per-node {data * others} -m lmforge.cli …")


def join_mesh(settings: Parallel | None = None) -> Mesh:
    """The mesh that [parallel] and the launcher's environment (WORLD_SIZE, RANK, LOCAL_RANK) describe; one rank without
    a launcher.

    Ranks may come at any time: the first waits without a limit, and only then do they form the group.

    Raises:
        InputError: [parallel] asks for another number of processes than there are.
    """
    settings = settings or Parallel()
    world, rank = agree.world(), agree.rank()
    sizes = sizes_of(settings, world)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if world > 1 and not dist.is_initialized():
        agree.wait_for_main()
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(f"lmforge/group/{next(_joined)}", agree.launcher_store()),
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=settings.limit),
        )
    return Mesh(rank, world, device, sizes, settings.limit)
