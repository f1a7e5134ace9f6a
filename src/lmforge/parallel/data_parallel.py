"""The whole network in every process, each on its own rows of a batch; with one process, the network on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lmforge.model.gpt import GPT
from lmforge.parallel.data import OverlappedSum
from lmforge.parallel.layout import LAYOUTS, Layout, MicroBatchWork, Result
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.thread_replicas import Replicas


class DataParallel(Layout):
    """Every process is a data rank; a process on a CPU may run several replicas of its network side by side."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh)
        self._model: GPT | None = None
        self._replicas: Replicas | None = None
        self._sum: OverlappedSum | None = None

    def apply(self, model: GPT) -> GPT:
        """Every process starts with the same weights, so they are only moved."""
        self._model = model.to(self.device)
        return self._model

    def prepare(self, replicas: int, threads: int) -> None:
        """Replicas share the weights of the network as it is now."""
        assert self._model is not None, "apply comes first"
        self._close_replicas()
        self._replicas = Replicas(self._model, replicas, threads)
        if self.world > 1:
            everyone = self.mesh.group("data")
            self._sum = OverlappedSum(list(self._model.parameters()), lambda _: everyone)

    @property
    def replicas(self) -> Replicas:
        """The networks of this process."""
        assert self._replicas is not None, "prepare comes first"
        return self._replicas

    def forward_backward(self, work: MicroBatchWork, rows: range) -> Tensor:
        """Each replica takes its share of the rows, one micro-batch after another; in the last one sums over processes
        begin while it runs, where one network makes the gradient."""

        alone = self._sum if len(self.replicas.models) == 1 else None  # what replicas made is summed when all are done

        def run_share(network: nn.Module, share: range) -> Tensor:
            nats = torch.zeros((), dtype=torch.float64, device=self.device)
            pieces = list(work.micro_batches(share))
            for micro_batch in pieces:
                if alone and micro_batch is pieces[-1]:
                    alone.arm()
                loss = work.loss(network, micro_batch)
                (loss * work.factor).backward()
                nats += loss.detach()
                work.after_backward(network, micro_batch)
            return nats

        return torch.stack(self.replicas.run(run_share, rows)).sum()

    def forward(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        """Each replica takes its share of the rows."""
        return self.replicas.run(work, rows)

    def sum_gradients(self, model: nn.Module) -> None:
        """Over all processes."""
        if self._sum is not None:
            self._sum.finish()

    def gradient_norm(self, model: nn.Module) -> Tensor:
        """Every process has the whole gradient."""
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def clip_gradients(self, model: nn.Module, largest: float, norm: float) -> None:
        """Alike in every process."""
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, torch.tensor(norm, device=self.device))

    def full_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The main rank has it all."""
        if not self.is_main:
            return {}
        own = model.state_dict(keep_vars=True)
        return {name: own[name].detach().contiguous().cpu() for name in untied(own).values()}

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Each process takes all of it."""
        model.load_state_dict(dict(state), strict=False)

    def close(self) -> None:
        """End the threads and leave the group."""
        self._close_replicas()
        super().close()

    def _close_replicas(self) -> None:
        if self._sum is not None:
            self._sum.close()
        self._sum = None
        if self._replicas is not None:
            self._replicas.close()
        self._replicas = None


def untied(state: Mapping[str, Tensor]) -> dict[int, str]:
    """The first name of each tensor of a state that was taken with `keep_vars`, by the tensor's identity."""
    names: dict[int, str] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return names


LAYOUTS.register("data-parallel", DataParallel)
