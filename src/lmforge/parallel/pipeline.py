"""The network cut into stages, one process (or more stages of one) after another: pipeline parallelism.

    stage 0: tokens ─embed, blocks─▶ hidden ┄▶ stage 1: blocks ┄▶ … ┄▶ last stage: blocks, norm, loss
             ◀┄┄┄┄┄┄┄┄┄┄┄┄┄┄ gradient of hidden ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┘

Every process of a pipeline reads the same rows, so each stage makes masks and positions of packed documents for its own
micro-batch; hidden states alone travel. Micro-batches may be of different sizes: shorter ones travel padded and are
computed as they are. A tied embedding stands in the first and the last stage, and its gradient is summed between them.

Processes that share a stage's weights, experts or tokens of rows run the same schedule, so what they exchange inside a
pass finds its counterpart; they all need equally many micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti

from lmforge.model.gpt import GPT
from lmforge.parallel.expert import as_many
from lmforge.parallel.layout import MicroBatchWork, Result
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.relay import Relay
from lmforge.parallel.schedules import KINDS, PutOff, micro_batches_of
from lmforge.parallel.shard import begin_passes, end_passes, inside
from lmforge.parallel.shares import local
from lmforge.parallel.spread import Spread
from lmforge.parallel.stages import Stages, leave, part_of
from lmforge.recipe.schema import Parallel

EMBEDDING = "embed.weight"


def apply_pipeline(model: GPT, mesh: Mesh, spread: Spread, settings: Parallel) -> None:
    """Leave this process its layers, in place; names stay. Enters what remains as `spread.enter(name,
    own="pipeline")`.

    Raises:
        InputError: the network cannot be cut so.
    """
    stages = Stages(model.config, mesh, settings)
    embedding = model.embed
    leave(model, stages.own_layers, stages.is_first, stages.is_last)
    if stages.tied and stages.is_last:
        model.embed = embedding  # what the head's matrix is called in the whole network; the first stage has it too
    for name, _ in model.named_parameters():
        spread.enter(name, own="pipeline")


class PipelineRunner:
    """Runs a schedule over the stages; made when the network has its last form."""

    def __init__(self, model: GPT, mesh: Mesh, settings: Parallel) -> None:
        self.model, self.mesh = model, mesh
        self.stages = stages = Stages(model.config, mesh, settings)
        self.share: Any = getattr(model, "share", None)  # of tokens of rows (`context`)
        self.group: Any = mesh.group("pipeline")
        self.ranks = mesh.ranks("pipeline")
        ends = stages.count - 1
        model.row_parts = mesh.sizes["tensor"]
        self.parts = {stage: part_of(model, stages.layers[stage], stage == 0, stage == ends) for stage in stages.own}
        # put off, gradients would keep the activations that these ways spare, and that reversible blocks write over
        spares = model.config.recompute or model.config.residual == "reversible"
        self.put_off = PutOff() if KINDS[stages.schedule].split else None
        if self.put_off is not None and not spares:
            self.put_off.take_over(list(model.blocks))
        self.step: PipelineStep | None = None
        self._built: dict[tuple[int, ...], Any] = {}

    def forward_backward(self, work: MicroBatchWork, rows: range) -> Tensor:
        """As `Layout.forward_backward`; the same sum of losses on all stages."""
        pieces = as_many(self.mesh, [*work.micro_batches(rows)])
        nats = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        if pieces:
            self.step = step = PipelineStep(work, pieces)
            count = micro_batches_of(self.stages.schedule, len(self.ranks), len(pieces))
            schedule = self._schedule(count, step.rows, step.length)
            begin_passes(self.model)
            schedule.step(number=torch.arange(count), target=torch.zeros(count), losses=[], return_outputs=False)
            end_passes(self.model)
            self.step = None
            nats += sum(step.nats)
        dist.broadcast(nats, self.ranks[self.stages.process_of(self.stages.count - 1)], group=self.group)
        return nats

    def _schedule(self, count: int, rows: int, length: int) -> Any:
        """torch's schedule for so many micro-batches of so many tokens; kept, since at the first use of one its
        processes have to agree."""
        key = (count, rows, length)
        if key not in self._built:
            kind = KINDS[self.stages.schedule]
            stages = [self._stage(stage, rows, length) for stage in self.parts]
            several = issubclass(kind.schedule, PipelineScheduleMulti)
            self._built[key] = kind.schedule(
                stages if several else stages[0], count, loss_fn=lambda loss, _: loss, scale_grads=False
            )
        return self._built[key]

    def _stage(self, stage: int, rows: int, length: int) -> PipelineStage:
        module = StageModule(self, stage)
        hidden = torch.empty(
            rows, self.own_length(length), module.width, dtype=module.dtype, device="meta", requires_grad=True
        )
        loss = torch.empty((), device="meta", requires_grad=True)
        return PipelineStage(
            module,
            stage,
            self.stages.count,
            self.mesh.device,
            input_args=() if stage == 0 else hidden,
            output_args=loss if module.last else hidden,
            group=self.group,
            dw_builder=self.put_off.builder if self.put_off else None,
        )

    def own_length(self, length: int) -> int:
        """Tokens of a row that this process has between blocks."""
        length = length if self.share is None else self.share.own_length(length)
        return length // self.mesh.sizes["tensor"]

    def forward(self, work: Callable[[nn.Module, range], Result], rows: range) -> list[Result]:
        """As `Layout.forward`, the results on all stages: each runs `work`, with a network that answers on all."""
        if not len(rows):
            return []
        relay: Any = Relay(self.model, self.parts, self.stages, self.mesh)
        return [work(relay, rows)]

    def sum_tied(self, model: GPT) -> None:
        """The gradient of a tied embedding becomes the sum of its copies on the first and the last stage: they stay
        equal for ever."""
        stages = self.stages
        if not self.shared_names() or not (stages.is_first or stages.is_last):
            return
        weight = model.get_parameter(EMBEDDING)
        own = local(torch.zeros_like(weight) if weight.grad is None else weight.grad).contiguous()
        other, peer = torch.empty_like(own), self.ranks[stages.process_of(stages.count - 1 if stages.is_first else 0)]
        exchange = [dist.P2POp(dist.isend, own, peer, self.group), dist.P2POp(dist.irecv, other, peer, self.group)]
        for request in dist.batch_isend_irecv(exchange):
            request.wait()
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        local(weight.grad).copy_(own + other)

    def shared_names(self) -> dict[str, int]:
        """Parameters that more than one process holds a copy of, and how many."""
        return {EMBEDDING: 2} if self.stages.tied and not self.stages.ends_meet else {}

    def close(self) -> None:
        """Forget the stages."""
        self._built.clear()
        self.parts.clear()


class PipelineStep:
    """The micro-batches of one step, and what the last stage makes of them."""

    def __init__(self, work: MicroBatchWork, pieces: list[range]) -> None:
        self.work, self.pieces = work, pieces
        largest = max(pieces, key=len)
        self.rows, self.length = work.tensors(largest)[0].shape
        self.each = self.rows // max(1, len(largest))  # rows that one of the batch is cut into (context_schedule)
        self.nats: list[Tensor] = []


class StageModule(nn.Module):
    """A stage as torch calls it: with the number of a micro-batch, and what enters."""

    def __init__(self, runner: PipelineRunner, stage: int) -> None:
        super().__init__()
        self.runner, self.part = runner, runner.parts[stage]
        self.last = stage == runner.stages.count - 1
        self.width = self.part.config.d_model * (2 if self.part.config.residual == "reversible" else 1)
        self.dtype = next(self.part.parameters()).dtype

    def forward(self, hidden: Tensor | None = None, *, number: Tensor) -> Tensor:
        """hidden (R,T,W), of which a micro-batch fills the first rows → the same; of the last stage, the loss."""
        step = self.runner.step
        assert step is not None
        if int(number) >= len(step.pieces):
            return self._nothing(step, hidden)
        rows = step.pieces[int(number)]
        count = len(rows) * step.each
        entering = None if hidden is None else hidden[:count]

        def work(entering: Tensor | None) -> Tensor:
            # the work knows precisions; what it calls a network's loss is here what one stage does
            result = step.work.loss(_Passing(self, entering, step.work.factor), rows)  # type: ignore[arg-type]
            if self.last:
                step.nats.append(result.detach().double())
                return result * step.work.factor
            return F.pad(result, (0, 0, 0, 0, 0, step.rows - count)).to(self.dtype)

        return inside(self.runner.model, work, entering)

    def _nothing(self, step: PipelineStep, hidden: Tensor | None) -> Tensor:
        """An empty micro-batch: zeros go through, and back."""
        if hidden is None:
            shape, device = (step.rows, self.runner.own_length(step.length), self.width), self.runner.mesh.device
            return torch.zeros(shape, dtype=self.dtype, device=device, requires_grad=True)
        return hidden.sum() * 0 if self.last else hidden * 1


class _Passing:
    """One micro-batch on its way through a stage, in the place of a network."""

    def __init__(self, module: StageModule, entering: Tensor | None, factor: float) -> None:
        self.module, self.entering, self.factor = module, entering, factor

    def loss(
        self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None, *, images: Tensor | None = None
    ) -> Tensor:
        """The last stage's loss; of another stage, what leaves it. Images go into the first."""
        part, first = self.module.part, self.entering is None
        entering = tokens if self.entering is None else self.entering
        if self.module.runner.share is not None and not first:
            self.module.runner.share.begin(tokens, documents)
        if self.module.last:
            return part.loss(entering, targets, documents)
        scale = torch.tensor(self.factor, device=entering.device) if part.config.has_experts else None
        return part.hidden(entering, documents=documents, loss_scale=scale, images=images if first else None)
