"""Every axis of a mesh, applied one after another to an unchanged network.

    whole network ─pipeline─▶ fewer layers ─expert─▶ fewer experts ─tensor─▶ parts of matrices ─context─▶ parts of rows
                  ─shard─▶ parts of weights ─data─▶ sums of gradients

Each axis is a file of its own and enters in one table (`spread`) what it did to which parameter. An axis of one process
is skipped: with all of them skipped this is the network on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.parallel.combinations import impossible, untrainable
from lmforge.parallel.context import apply_context
from lmforge.parallel.data import OverlappedSum
from lmforge.parallel.expert import apply_expert, as_many, count_together
from lmforge.parallel.layout import LAYOUTS, Layout, MicroBatchWork, Result
from lmforge.parallel.mesh import Mesh, join_mesh, sum_together
from lmforge.parallel.pipeline import PipelineRunner, apply_pipeline
from lmforge.parallel.shard import SHARD_AXES, apply_shard, let_go, sharded_modules
from lmforge.parallel.shares import local
from lmforge.parallel.tensor import apply_tensor
from lmforge.parallel.whole import WholeMatrices, put_parts, state_names, tensor_of
from lmforge.recipe.schema import Parallel, Recipe


class MeshLayout(Layout):
    """A network over data × shard × tensor × pipeline × expert × context processes."""

    def __init__(self, mesh: Mesh, settings: Parallel | None = None) -> None:
        super().__init__(mesh)
        self.settings = settings or Parallel()
        self._model: GPT | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._counts = (0, 0)
        self._pipeline: PipelineRunner | None = None
        self._sum: OverlappedSum | None = None

    @classmethod
    def join(cls, settings: Parallel) -> Self:
        """As `Layout.join`."""
        return cls(join_mesh(settings), settings)

    def apply(self, model: GPT) -> GPT:
        """Lay the network over the mesh, in place.

        Raises:
            InputError: axes that do not fit each other or this network; names each with the reason.
        """
        mesh, settings, sizes = self.mesh, self.settings, self.mesh.sizes
        if problems := impossible(sizes, model.config):
            raise InputError("parallel: " + "; ".join(problems))
        self._shapes, self._counts = super().shapes(model), super().parameter_counts(model)
        if sizes["pipeline"] > 1:
            apply_pipeline(model, mesh, self.spread, settings)
        if sizes["expert"] > 1:
            apply_expert(model, mesh, self.spread)
        if sizes["tensor"] > 1:
            apply_tensor(model, mesh, self.spread)
        if sizes["context"] > 1:
            apply_context(model, mesh, self.spread)
        count_together(model, mesh)
        self._model = model.to(self.device)
        if sizes["shard"] > 1:
            apply_shard(model, mesh, settings)
        return self._model

    def whole_matrices(self, model: nn.Module) -> WholeMatrices | None:
        """Matrices are put together where shards or tensor parallel have cut them."""
        cut = self.mesh.size("shard", "tensor") > 1
        return WholeMatrices(self.mesh, self.spread, model) if cut else None

    def shapes(self, model: GPT) -> dict[str, torch.Size]:
        """As they were before anything was laid out."""
        return self._shapes

    def parameter_counts(self, model: nn.Module) -> tuple[int, int]:
        """As they were before anything was laid out."""
        return self._counts

    @property
    def model(self) -> GPT:
        """What this process has of the network."""
        assert self._model is not None, "apply comes first"
        return self._model

    def prepare(self, replicas: int, threads: int) -> None:
        """One network, on `threads` threads."""
        torch.set_num_threads(threads)
        mesh = self.mesh
        if mesh.sizes["pipeline"] > 1:
            self._pipeline = PipelineRunner(self.model, mesh, self.settings)
        if self._sum is not None:
            self._sum.close()
        names = [name for name, _ in self.model.named_parameters()]
        groups = [mesh.group(*self._summed_over(name)) for name in names]
        if mesh.sizes["shard"] == 1:
            self._sum = OverlappedSum(list(self.model.parameters()), groups.__getitem__)

    def _summed_over(self, name: str) -> tuple[str, ...]:
        """Axes over which nobody else sums a parameter's gradient."""
        done = SHARD_AXES if self.mesh.sizes["shard"] > 1 else ()
        return tuple(axis for axis in self.spread.summed_over(name) if axis not in done)

    def forward_backward(self, work: MicroBatchWork, rows: range) -> Tensor:
        """One micro-batch after another, or the pipeline's schedule; the same loss on every process of a data rank."""
        mesh = self.mesh
        if self._pipeline is not None:
            nats = self._pipeline.forward_backward(work, rows)
        else:
            nats = torch.zeros((), dtype=torch.float64, device=self.device)
            pieces = as_many(mesh, list(work.micro_batches(rows)))
            for number, piece in enumerate(pieces):
                self._next_is_last(number + 1 == len(pieces))
                loss = work.loss(self.model, piece)
                (loss * work.factor).backward()
                nats += loss.detach()
                if self.mesh.sizes["data"] == self.world:  # the gradient here is that of whole rows and all weights
                    work.after_backward(self.model, piece)
        if self.mesh.sizes["context"] > 1:
            dist.all_reduce(nats, group=self.mesh.group("context"))
        return nats

    @property
    def _sharded(self) -> list[Any]:
        return sharded_modules(self.model) if self.mesh.sizes["shard"] > 1 else []

    def _next_is_last(self, last: bool) -> None:
        if self._sum is not None:
            if last:
                self._sum.arm()
            return
        for module in self._sharded:
            module.set_is_last_backward(last)
            module.set_requires_all_reduce(last)

    def forward(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        """Every process runs all rows (of a pipeline: its layers)."""
        results = [work(self.model, rows)] if self._pipeline is None else self._pipeline.forward(work, rows)
        if self.mesh.sizes["shard"] > 1:  # other weights may be put in before the next pass
            let_go(self.model)
        return results

    def sum_gradients(self, model: nn.Module) -> None:
        """Over the axes that each parameter's placement names; what is sharded has been summed over the shards."""
        if self._pipeline is not None and self.model.config.tied:
            self._pipeline.sum_tied(self.model)
        if self._sum is not None:
            self._sum.finish()
            return
        by_axes: dict[tuple[str, ...], list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            axes = self._summed_over(name)
            if axes and parameter.grad is not None:
                by_axes.setdefault(axes, []).append(local(parameter.grad))
        for axes, gradients in by_axes.items():
            sum_together(gradients, self.mesh.group(*axes))

    def gradient_norm(self, model: nn.Module) -> Tensor:
        """Over all parameters of the whole network: each part counts once, however many processes hold it."""
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return self._squares(gradients).sum().sqrt()

    def squares(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """As `Layout.squares`."""
        return dict(zip(self._shapes, self._squares(tensors).tolist(), strict=True))

    def _squares(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Those of each parameter of the whole network, float64."""
        places = {name: place for place, name in enumerate(self._shapes)}
        sums = torch.zeros(len(places), dtype=torch.float64, device=self.device)
        for name, tensor in tensors.items():
            one = local(tensor).square().sum(dtype=torch.float64)
            sums[places[name]] += one / self._copies(name)
        if self.world > 1:
            dist.all_reduce(sums)
        return sums

    def _copies(self, name: str) -> int:
        """How many processes hold the same part of a parameter."""
        copies = self.spread.copies(name) // self.mesh.sizes["shard"]
        shared = self._pipeline.shared_names() if self._pipeline is not None else {}
        return copies * shared.get(name, 1)

    def clip_gradients(self, model: nn.Module, largest: float, norm: float) -> None:
        """Alike in every process."""
        gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, min(1.0, largest / (norm + 1e-6)))

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Put together on the main rank, tensor by tensor."""
        names = state_names(model)
        return self.gathered({name: tensor_of(model, name) for name in names}, {name: name for name in names})

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Each process takes its parts."""
        put_parts(self.spread, model, state)

    @property
    def shares_network(self) -> bool:
        """All but copies on their own rows."""
        return self.world > self.mesh.sizes["data"]

    def check(self, recipe: Recipe, rows: Iterable[int]) -> None:
        """As `Layout.check`."""
        if problems := untrainable(self.mesh.sizes, recipe, rows):
            raise InputError("parallel: " + "; ".join(problems))

    def close(self) -> None:
        """Leave the groups."""
        if self._sum is not None:
            self._sum.close()
        super().close()


LAYOUTS.register("mesh", MeshLayout)
