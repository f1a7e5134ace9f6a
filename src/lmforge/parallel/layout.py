"""How one network lies over devices: everything in training that depends on it, behind one interface.

    model ─apply─▶ what this process holds of it
    batch ─▶ rows of this data rank ─forward_backward─▶ gradients ─sum_gradients─▶ gradient_norm ─▶ clip_gradients
    full_state ◀─ what the processes hold together ◀─ load_state

`train/` knows devices, ranks and collectives only through a `Layout`. A new one is a class in a file of its own and one
line, `LAYOUTS.register("name", Class)`; a recipe chooses it with `parallel.layout`.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.parallel.initial import initialise_by_index
from lmforge.parallel.lost import LostRanks
from lmforge.parallel.mesh import AXES, Mesh, join_mesh
from lmforge.parallel.spread import Spread
from lmforge.parallel.whole import WholeMatrices, gather_whole, part_of, state_names, tensor_of
from lmforge.recipe.schema import Parallel, Recipe
from lmforge.registry import Registry

Result = TypeVar("Result")


class MicroBatchWork(Protocol):
    """Rows of a batch that are to be run forward and backward; the layout decides which network does which rows, and
    when."""

    factor: float  # of a micro-batch's loss before its backward pass

    def micro_batches(self, rows: range) -> Iterable[range]:
        """Some rows in pieces that fit."""
        ...

    def tensors(self, rows: range) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and documents of a micro-batch (B,T) on the device, for a layout that passes hidden states
        from stage to stage itself."""
        ...

    def loss(self, network: nn.Module, rows: range) -> Tensor:
        """A micro-batch's loss, the sum over its tokens in nats."""
        ...

    def after_backward(self, network: nn.Module, rows: range) -> None:
        """Called when a micro-batch's gradient has been added in `network`."""
        ...


class Layout(abc.ABC):
    """One process's view of a network that lies over `world` processes. Those of one data rank share their rows of a
    batch; here and in every layout without model parallelism each process is a data rank of its own."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.spread = Spread(mesh)  # where each parameter lies; whole everywhere, unless a layout enters something

    @classmethod
    def join(cls, settings: Parallel) -> Self:
        """The layout over the processes that the launcher started.

        Raises:
            InputError: the recipe's [parallel] asks for other processes than there are.
        """
        return cls(join_mesh(settings))

    @property
    def rank(self) -> int:
        """This process among all."""
        return self.mesh.rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.mesh.world

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.mesh.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.mesh.is_main

    @property
    def data_rank(self) -> int:
        """Which share of a batch's rows this process takes part in."""
        return self.mesh.data_rank

    @property
    def data_size(self) -> int:
        """Into how many shares a batch is cut."""
        return self.mesh.data_size

    @abc.abstractmethod
    def apply(self, model: GPT) -> GPT:
        """Lay a whole network, the same in every process, over the devices; what this process is to train of it."""

    def initialise(self, model: GPT, seed: int, base_width: int | None = None, output_multiplier: float = 1.0) -> None:
        """Values of a network, laid out already, that depend on no layout (`initial`)."""
        initialise_by_index(model, self.spread, seed, base_width, output_multiplier)

    @abc.abstractmethod
    def prepare(self, replicas: int, threads: int) -> None:
        """Before the first batch, when the network has its last form: how this process runs it, as `replicas` side by
        side with one thread each or one on `threads` threads."""

    @abc.abstractmethod
    def forward_backward(self, work: MicroBatchWork, rows: range) -> Tensor:
        """Add the gradients of this process's rows of a batch; the sum of their losses in nats, 0-d float64 on the
        device."""

    @abc.abstractmethod
    def forward(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        """Without gradients: `work(network, some of the rows)` until all rows are done, in their order."""

    @abc.abstractmethod
    def sum_gradients(self, model: nn.Module) -> None:
        """Each gradient becomes its sum over data ranks (each has divided by the global token count already)."""

    @abc.abstractmethod
    def gradient_norm(self, model: nn.Module) -> Tensor:
        """The norm of the whole gradient, over all that the processes hold of it; 0-d, on the device."""

    @abc.abstractmethod
    def clip_gradients(self, model: nn.Module, largest: float, norm: float) -> None:
        """Scale the gradient, whose whole norm is `norm`, down to `largest`."""

    def squares(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Σ x² of tensors in the shape of parameters, over the whole of each, of all processes, by name. All take
        part."""
        return {name: float(tensor.square().sum()) for name, tensor in tensors.items()}

    @abc.abstractmethod
    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Every tensor of the whole network by name, tied ones once, on the CPU of the main rank; empty elsewhere. All
        processes take part."""

    @abc.abstractmethod
    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Put full tensors, as `full_state` gives them, into what this process holds; tensors that are not given stay.

        All processes take part with the same `state`.
        """

    def gathered(self, tensors: Mapping[str, Tensor], parameter_of: Mapping[str, str]) -> dict[str, Tensor]:
        """This process's tensors, such as gradients or an optimizer's state, with those of all others: whole, on the
        CPU of the main rank; empty elsewhere. `parameter_of`: the parameter in whose shape each is (others are alike on
        all processes). All take part."""
        return gather_whole(self.mesh, self.spread, tensors, parameter_of)

    def part(self, name: str, like: Tensor, whole: Tensor) -> Tensor:
        """What this process holds of a whole tensor in the shape of parameter `name`, of which it holds `like`."""
        return part_of(self.spread, name, like, whole)

    def whole_matrices(self, model: nn.Module) -> WholeMatrices | None:
        """For an optimizer that needs whole matrices; None where this process has them."""
        return None

    def shapes(self, model: GPT) -> dict[str, torch.Size]:
        """The shape of every tensor of the whole network by name, tied ones once."""
        return {name: tensor_of(model, name).shape for name in state_names(model)}

    def everywhere(self, model: GPT, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The main rank's whole state on every process."""
        if self.world == 1:
            return dict(state)
        wholes = {}
        for name, shape in self.shapes(model).items():
            dtype = self.mesh.gather(state[name].dtype if self.is_main and name in state else None)[0]
            if dtype is not None:
                wholes[name] = self.broadcast_tensor(state[name] if self.is_main else torch.empty(shape, dtype=dtype))
        return wholes

    @property
    def shares_network(self) -> bool:
        """Whether processes need each other in every pass."""
        return False

    def check(self, recipe: Recipe, rows: Iterable[int]) -> None:  # noqa: B027 (most layouts train everything)
        """Whether a recipe whose batches have so many rows can be trained in this layout.

        Raises:
            InputError: it cannot; names every reason.
        """

    def total(self, *values: float) -> list[float]:
        """The sums of some numbers over data ranks, in float64."""
        return self.mesh.total(*values)

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of ranks; small plain things."""
        return self.mesh.gather(value)

    def broadcast(self, value: Any) -> Any:
        """The main rank's `value` (what JSON can hold) on every rank: it decides, the others do the same."""
        return self.mesh.broadcast(value)

    def broadcast_tensor(self, tensor: Tensor) -> Tensor:
        """The main rank's tensor on every rank, which has one of the same shape and type."""
        return self.mesh.broadcast_tensor(tensor)

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What the main rank's `work` returns (what JSON can hold), on every rank, however long it takes.

        Raises:
            LmforgeError: on the other ranks, where it failed; the main rank raises what it raised.
        """
        return self.mesh.on_main(work)

    def watching(self, where: Callable[[], tuple[int, str]]) -> contextlib.AbstractContextManager[Any]:
        """While it is entered, a process that no longer answers is named by all others, which then end (`lost`).
        `where()`: this process's step, from 1, and what it does."""
        return LostRanks(self.mesh, where)

    def parameter_counts(self, model: nn.Module) -> tuple[int, int]:
        """Trained and frozen parameters of the whole network."""
        sizes = {each: sum(p.numel() for p in model.parameters() if p.requires_grad is each) for each in (True, False)}
        return sizes[True], sizes[False]

    def wait(self) -> None:
        """Until every process is here, however long the main rank works alone before."""
        self.mesh.wait()

    def close(self) -> None:
        """End this process's part."""
        self.mesh.close()


LAYOUTS: Registry[type[Layout]] = Registry(
    "layout (parallel.layout)", ("lmforge.parallel.data_parallel", "lmforge.parallel.mesh_layout")
)
ALONE = "data-parallel"  # the layout that knows no other axis than "data"


def layout_name(settings: Parallel) -> str:
    """The name of the layout that a recipe's [parallel] chooses.

    Raises:
        InputError: it names "data-parallel" and gives axes that this does not know.
    """
    others = [axis for axis in AXES if axis != "data" and getattr(settings, axis) > 1]
    if settings.layout == ALONE and others:
        raise InputError(f"parallel.layout: '{ALONE}' knows no {', '.join(others)}; use 'mesh', or leave it out")
    return settings.layout or ("mesh" if others else ALONE)


def join_layout(settings: Parallel) -> Layout:
    """The layout that a recipe's [parallel] chooses, over the processes that the launcher started.

    Raises:
        InputError: there is none of that name (names those there are), or it needs other processes.
    """
    return LAYOUTS[layout_name(settings)].join(settings)
