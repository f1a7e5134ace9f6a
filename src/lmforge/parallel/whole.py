"""Whole tensors from the parts that processes hold, and parts from wholes: for checkpoints, by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmforge.parallel.mesh import Mesh
from lmforge.parallel.shares import gathered, like_part, local, part_like
from lmforge.parallel.spread import Spread


def state_names(model: nn.Module) -> list[str]:
    """The names of a network's tensors, of tied ones the first."""
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    return list(names.values())


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name."""
    owner, _, last = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), last)
    return tensor


def whole_of(mesh: Mesh, spread: Spread, name: str, tensor: Tensor) -> Tensor:
    """The whole of a tensor in the shape of parameter `name`; all processes that have that parameter take part."""
    whole, cut = gathered(tensor.detach()), spread[name].cut
    if cut is None:
        return whole
    ranks, group = mesh.ranks(cut.axis), mesh.group(cut.axis)
    parts = []
    for index, rank in enumerate(ranks):
        shape = list(cut.shape)
        shape[cut.dim] = sum(map(len, cut.parts[index]))
        part = whole.contiguous() if rank == mesh.rank else whole.new_empty(shape)
        dist.broadcast(part, rank, group=group)
        parts.append(part)
    return cut.joined(parts)


@torch.no_grad()
def gather_whole(
    mesh: Mesh, spread: Spread, tensors: Mapping[str, Tensor], parameter_of: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors of all processes, whole, on the CPU of the main rank; empty elsewhere. `parameter_of`: the parameter in
    whose shape each is; those without are alike on every process that has them. All take part, those with the same
    parameters with the same tensors in the same order."""
    leads = mesh.index("data", "shard", "context", "tensor") == 0  # one process for each set of parameters
    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = parameter_of.get(key)
        whole = gathered(tensor.detach()) if name is None else whole_of(mesh, spread, name, tensor)
        if leads:
            own[key] = whole.contiguous().cpu().clone() if mesh.rank else whole.contiguous().cpu()
    if mesh.size("pipeline", "expert") == 1:
        return own if mesh.is_main else {}
    offers = mesh.gather({key: (list(each.shape), each.dtype) for key, each in own.items()} if leads else {})
    for rank, offer in enumerate(offers):
        if rank == 0:
            continue
        for key, (shape, dtype) in offer.items():
            if key in offers[0] or any(key in earlier for earlier in offers[:rank]):
                continue
            if mesh.rank == rank:
                dist.send(own[key].to(mesh.device), 0)
            elif mesh.is_main:
                room = torch.empty(shape, dtype=dtype, device=mesh.device)
                dist.recv(room, rank)
                own[key] = room.cpu()
    return own if mesh.is_main else {}


@torch.no_grad()
def put_parts(spread: Spread, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy this process's parts of whole tensors into a network; those that are not given, or not here, stay."""
    for name in state_names(model):
        if name in state:
            tensor = tensor_of(model, name)
            local(tensor).copy_(part_of(spread, name, tensor, state[name]))


def part_of(spread: Spread, name: str, like: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a whole tensor in the shape of parameter `name`, of which it holds `like`."""
    return part_like(like, spread.part(name, whole))


class WholeMatrices:
    """Parts of matrices → whole ones, on which some work is done, → parts of the results. Those who hold parts of the
    same matrices share the work: each does it for some of them."""

    def __init__(self, mesh: Mesh, spread: Spread, model: nn.Module) -> None:
        self.mesh, self.spread = mesh, spread
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}

    def shape(self, parameter: Tensor) -> torch.Size:
        """That of the whole matrix."""
        return self.spread.shape(self.names[id(parameter)], parameter)

    @torch.no_grad()
    def each(
        self, parameters: Sequence[Tensor], parts: Sequence[Tensor], work: Callable[[Sequence[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """See `train.optim.WholeMatrices`."""
        names = [self.names[id(parameter)] for parameter in parameters]
        wholes = [whole_of(self.mesh, self.spread, name, part) for name, part in zip(names, parts, strict=True)]
        results = self._shared(wholes, work)
        return [
            like_part(parameter, part_of(self.spread, name, parameter, result).contiguous())
            for name, parameter, result in zip(names, parameters, results, strict=True)
        ]

    def _shared(self, wholes: Sequence[Tensor], work: Callable[[Sequence[Tensor]], list[Tensor]]) -> list[Tensor]:
        """Matrix i is worked on by process i, i + n, …, and sent to the others."""
        ranks, group = self.mesh.ranks("shard", "tensor"), self.mesh.group("shard", "tensor")
        me, count = self.mesh.index("shard", "tensor"), len(ranks)
        own = iter(work(wholes[me::count]) if me < len(wholes) else [])
        results = []
        for number, whole in enumerate(wholes):
            result = next(own).contiguous() if number % count == me else torch.empty_like(whole)
            dist.broadcast(result, ranks[number % count], group=group)
            results.append(result)
        return results
