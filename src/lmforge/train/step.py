"""One update of the weights from one batch, or none where the batch would harm them.

    rates ─▶ forward, backward (micro-batches) ─▶ sum over ranks ─▶ mean over what counts ─▶ fit? ─▶ clip ─▶ optimizers
                       ▲                                              │ float16 overflowed      └no▶ skipped, its cause
                       └────────── half the loss scale ◀──────────────┘                              in the figures

How a batch's work is spread over networks and devices is the layout's affair (`parallel.layout`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmforge.model.gpt import GPT
from lmforge.parallel.layout import Layout
from lmforge.progress import log_once
from lmforge.tokens.images import scaled
from lmforge.tokens.loader import Batch
from lmforge.train.autotune import ExecutionPlan
from lmforge.train.diagnose import Diagnosis, first_bad_gradient
from lmforge.train.objective import objective_of
from lmforge.train.precision import LossScaler, autocast
from lmforge.train.schedule import TrainingSchedule
from lmforge.train.stability import SkippedBatches, Stability
from lmforge.train.statistics import NoiseScale, weights_and_gradients
from lmforge.train.watchdog import Watchdog

MOST_HALVINGS = (
    7  # times a batch is computed where float16 overflows; where six halvings do not help, it is not the scale
)


class Gradient(NamedTuple):
    """What is known of a batch once its gradient stands in the network, over all ranks."""

    loss: float  # mean over the tokens that count, in nats
    counted: float  # tokens that count
    text_bytes: float  # UTF-8 bytes of them
    norm: float


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What a step uses and the run keeps: parts with a state of their own, and those that watch."""

    stability: Stability
    scaler: LossScaler
    noise: NoiseScale
    excluded: SkippedBatches
    diagnosis: Diagnosis
    watch: Watchdog


class BatchWork:
    """This rank's rows of a batch, for a layout to run forward and backward (`MicroBatchWork`)."""

    def __init__(
        self,
        batch: Batch,
        context: int,
        size: int,
        tokens: int,
        scale: float,
        loss: Callable[[nn.Module, tuple[Tensor, Tensor, Tensor | None], Tensor | None], Tensor],
        token_bytes: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        """`size` rows a micro-batch, each cut to rows of `context` tokens; `tokens` in the batch of all ranks, by which
        losses are divided, so that neither micro-batches, replicas nor ranks change the gradient; `scale` of the loss;
        `loss(network, tensors, images)` in nats."""
        self.batch, self.context, self.size, self.tokens, self.scale = batch, context, size, tokens, scale
        self.factor = scale / tokens
        self.network_loss, self.token_bytes, self.device = loss, token_bytes, device
        self.counts: dict[int, tuple[int, int]] = {}  # by first row: UTF-8 bytes and number of the tokens that count
        self.measuring = False  # whether `few` is wanted
        self.few: list[tuple[int, float]] = []  # of each share's first micro-batch: tokens that count, |mean gradient|²
        self._shares: set[int] = set()  # their first rows

    def micro_batches(self, rows: range) -> Iterable[range]:
        """A share of the rows in pieces of `size`."""
        self._shares.add(rows.start)
        return (range(first, min(first + self.size, rows.stop)) for first in range(rows.start, rows.stop, self.size))

    def tensors(self, rows: range) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and documents (B,T) on the device; counts what of them counts."""
        part = self.batch.part(rows.start, len(rows)).cut(self.context)
        counting = part.targets[part.targets >= 0]
        self.counts[rows.start] = int(self.token_bytes[counting].sum()), len(counting)
        return to_device(part, self.device)

    def loss(self, network: nn.Module, rows: range) -> Tensor:
        """The sum over a micro-batch's tokens in nats."""
        images = images_to_device(self.batch.part(rows.start, len(rows)), self.device)
        return self.network_loss(network, self.tensors(rows), images)

    def after_backward(self, network: nn.Module, rows: range) -> None:
        """Note the size of the gradient over few tokens."""
        row_tokens = self.batch.inputs.shape[1]
        if self.measuring and rows.start in self._shares and len(rows) * row_tokens < self.tokens:
            counted = self.counts[rows.start][1]
            unit = self.tokens / (self.scale * max(1, counted))  # to the gradient of the mean over these tokens
            gradients = (p.grad for p in network.parameters() if p.grad is not None)
            self.few.append((counted, sum(float(gradient.square().sum()) for gradient in gradients) * unit**2))


class TrainStep:
    """Forward, backward and update, as the execution plan says."""

    def __init__(
        self,
        layout: Layout,
        model: GPT,
        optimizers: dict[str, torch.optim.Optimizer],
        schedule: TrainingSchedule,
        plan: ExecutionPlan,
        token_bytes: NDArray[np.int64],
        parts: StepParts,
        compiled: Callable[..., Tensor] | None = None,
    ) -> None:
        """`compiled`: the network's loss as compiled code, where the plan says so."""
        self.layout, self.model, self.optimizers, self.schedule = layout, model, optimizers, schedule
        self.plan, self.token_bytes, self.parts, self.compiled = plan, token_bytes, parts, compiled

    def run(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update from this rank's rows of the batch, or none where it would harm the network; the figures then have
        `skipped`, the reason."""
        parts, settings = self.parts, self.schedule.settings
        if step in parts.excluded.steps:
            return {"skipped": "left out after a return to a checkpoint"}
        share = self.schedule.set_rates(self.optimizers, step)
        gradient, few = self.gradient(step, batch)
        cause = parts.stability.judge(step, gradient.loss, gradient.norm)
        if cause:
            self.model.zero_grad(set_to_none=True)
            return {"skipped": cause} | self.diagnose(step, batch, cause)
        figures = self.statistics(gradient, few) if self.schedule.validates_after(step) else {}
        if gradient.norm + 1e-6 > settings.clip:  # below it clipping would multiply every gradient by 1
            self.layout.clip_gradients(self.model, settings.clip, gradient.norm)
        self.update(step, figures)
        bits = gradient.loss * gradient.counted / math.log(2) / max(1, gradient.text_bytes)
        return {
            "loss": gradient.loss,
            "bits_per_byte": bits,
            "lr": settings.peak_lr * share,
            "grad_norm": gradient.norm,
            **figures,
        }

    def update(self, step: int, figures: dict[str, Any]) -> None:
        """Let the optimizers change the weights; the loss scale that served goes into the figures."""
        self.parts.watch.doing(step + 1, "updating the weights")
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if self.plan.precision == "fp16":
            figures["loss_scale"] = self.parts.scaler.scale
            self.parts.scaler.fitted()

    def gradient(self, step: int, batch: Batch) -> tuple[Gradient, list[tuple[int, float]]]:
        """Leave in the network the gradient of the mean loss over all that counts in the batch, in all ranks. With its
        figures, of this rank's first micro-batches the tokens and the squared norm of their mean gradient.

        Where float16 overflows, the batch is computed again with a smaller loss scale.
        """
        scaler, half = self.parts.scaler, self.plan.precision == "fp16"
        for _ in range(MOST_HALVINGS):
            work = self.work(step, batch, scaler.scale if half else 1.0)
            gradient = self.forward_backward(step, batch, work)
            if not half or not math.isfinite(gradient.loss) or math.isfinite(gradient.norm):
                break
            log_once(
                f"train: step {step + 1}: float16 overflows at a loss scale of {scaler.scale:g}, first in the gradient "
                f"of {first_bad_gradient(self.model)}; the batch again with half of it"
            )
            scaler.overflowed(step)
            self.model.zero_grad(set_to_none=True)
        return gradient, work.few

    def work(self, step: int, batch: Batch, scale: float) -> BatchWork:
        """A batch for the layout, its losses scaled by `scale`."""
        objective = objective_of(self.schedule.settings)

        def loss(network: nn.Module, tensors: tuple[Tensor, Tensor, Tensor | None], images: Tensor | None) -> Tensor:
            among = {} if images is None else {"images": images}
            with autocast(self.plan.precision, self.layout.device):
                value: Tensor
                value = self.compiled(*tensors, **among) if self.compiled else objective.loss(network, *tensors, images)
            return value

        work = BatchWork(
            batch,
            self.schedule.context_at(step),
            max(1, self.plan.micro_batch_tokens // self.schedule.context),
            self.schedule.batch_tokens(step),
            scale,
            loss,
            self.token_bytes,
            self.layout.device,
        )
        work.measuring = self.schedule.validates_after(step)
        return work

    def forward_backward(self, step: int, batch: Batch, work: BatchWork) -> Gradient:
        """The layout runs the work; the gradients of all ranks become that of the mean over what counts."""
        watch, size = self.parts.watch, self.schedule.batch_tokens(step)
        watch.doing(step + 1, "forward and backward")
        loss = self.layout.forward_backward(work, range(len(batch.inputs)))
        watch.doing(step + 1, "summing gradients over ranks")
        self.layout.sum_gradients(self.model)
        text_bytes, counted = (float(sum(column)) for column in zip(*work.counts.values(), strict=True))
        if self.layout.data_size > 1:
            nats, text_bytes, counted = self.layout.total(float(loss), text_bytes, counted)
            loss = torch.tensor(nats, dtype=loss.dtype, device=loss.device)
        if self.plan.precision == "fp16":
            self.parts.scaler.unscale(self.model.parameters())
        if counted != size:  # some tokens do not count: the mean is over those that do, in all ranks
            rescale_gradients(self.model, size / max(1.0, counted))
        nats, norm = to_host(loss, self.layout.gradient_norm(self.model))
        return Gradient(nats / max(1.0, counted), counted, text_bytes, norm)

    def diagnose(self, step: int, batch: Batch, cause: str) -> dict[str, Any]:
        """What of a skipped batch is to blame, by the loss of eager code."""
        context = self.schedule.context_at(step)

        def loss(rows: Batch) -> Tensor:
            with autocast(self.plan.precision, self.layout.device):
                images = images_to_device(rows, self.layout.device)
                tensors = to_device(rows.cut(context), self.layout.device)
                value = objective_of(self.schedule.settings).loss(self.model, *tensors, images)
            return value

        return self.parts.diagnosis.find(step, batch, loss, cause)

    def statistics(self, gradient: Gradient, few: list[tuple[int, float]]) -> dict[str, Any]:
        """Sizes of weights and gradients by layer, and the noise of the gradient where the batch was computed in
        parts."""
        noise = self.parts.noise
        if few and (tokens := sum(count for count, _ in few) / len(few)) < gradient.counted:
            noise.add(tokens, sum(square for _, square in few) / len(few), gradient.counted, gradient.norm**2)
        return {"noise_scale_tokens": noise.tokens, "layers": weights_and_gradients(self.model, self.layout)}


def rescale_gradients(model: nn.Module, factor: float) -> None:
    """Multiply every gradient."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def to_device(part: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets, documents as tensors where the network is."""
    tokens, wanted = torch.from_numpy(part.inputs).to(device), torch.from_numpy(part.targets).to(device)
    return tokens, wanted, None if part.documents is None else torch.from_numpy(part.documents).to(device)


def images_to_device(part: Batch, device: torch.device) -> Tensor | None:
    """The images of rows, from −1 to 1, where the network is."""
    return None if part.images is None else torch.from_numpy(scaled(part.images)).to(device)


def to_host(*numbers: Tensor) -> list[float]:
    """Numbers of the device, in one copy: the host waits for it once."""
    values: list[float] = torch.stack([number.double() for number in numbers]).tolist()
    return values
