"""The short training towards a teacher that methods share: a student's own, and the healing of what was cut.

    draw(1), draw(2), … ─rows of a step─▶ student ─▶ logits ─┐
                        └──────────────▶ teacher ─▶ targets ─┴─ loss ─▶ optimizer (train.optim) at the schedule's rate

What training keeps is in one file, a few times a run and at its end, so that a killed one goes on as it would have.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from lmforge.allocator import freed_memory_kept
from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.method import CalibrationBatch, Context
from lmforge.compress.targets import CachedTargets, LiveTargets, Targets
from lmforge.compress.teachers import Teacher, digest
from lmforge.errors import LmforgeError
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import Train
from lmforge.recipe.types import Positive, Section, Share
from lmforge.record import hash_json, write_atomic
from lmforge.train.optim import build_optimizers, rate, set_rate
from lmforge.train.precision import autocast

TRAINING = "training.pt"
PARTS = 5  # times a run is saved
Rate = Annotated[float, Field(gt=0)]


class Healing(Section):
    """A short training of a compressed model towards its teacher."""

    # updates of the weights
    steps: Positive = 200
    tokens: Positive | None = None  # instead of steps
    rows: Positive = 8  # of a step
    # as in [train]
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    # largest rate of AdamW or SGD
    peak_lr: Rate = 5e-4
    matrix_lr: Rate = 0.01  # Muon's
    # as in [train]
    schedule: Literal["cosine", "wsd"] = "cosine"
    # the schedule ends at this share of the peak
    final_lr: Share = 0.1
    warmup: Annotated[int, Field(ge=0)] | None = None  # default: 4% of the steps
    # of matrices
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # largest norm of a step's gradient
    clip: Rate = 1.0
    # of the arithmetic; weights are fp32
    precision: Literal["fp32", "bf16"] = "fp32"
    temperature: Rate = 1.0  # both distributions are softened by it
    reverse: Share = 0.0  # share of the reverse divergence, KL(student || teacher)
    labels: Share = 0.0  # share of the cross-entropy with the text itself
    hidden: Annotated[float, Field(ge=0)] = 0.0  # weight of the distance between the last layers' directions
    # live: the teacher runs beside; sampled: an unbiased cache on disk; top_k: a biased one
    teacher: Literal["live", "sampled", "top_k"] = "live"
    samples: Positive = 50  # drawn, or kept, of each prediction that is cached
    proposal: Rate = 1.0  # the cache draws from p to this power; below 1 rare tokens come more often
    distinct: Positive | None = None  # steps after which the same rows come again; default: none do
    teachers: tuple[Path, ...] = ()  # models beside the original whose probabilities are averaged with its own

    @model_validator(mode="after")
    def _a_cache_holds_probabilities_alone(self) -> Healing:
        if self.teacher != "live" and (self.reverse or self.hidden):
            raise ValueError(
                f"teacher = '{self.teacher}' keeps a part of the probabilities, and reverse and hidden need the "
                "teacher itself: set teacher = 'live', or both to 0"
            )
        if self.hidden and self.teachers:
            raise ValueError("hidden: several teachers have no one last layer; set hidden = 0 or teachers = []")
        return self

    def train(self) -> Train:
        """As the training's own parts take it."""
        return Train(
            optimizer=self.optimizer,
            peak_lr=self.peak_lr,
            matrix_lr=self.matrix_lr,
            schedule=self.schedule,
            final_lr=self.final_lr,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )


class Rows:
    """The rows of each step: those of batches 1, 2, … one after another, whatever the size of a batch."""

    def __init__(self, context: Context, settings: Healing) -> None:
        first = context.draw(1)
        self.draw, self.count, self.size = context.draw, settings.rows, len(first.inputs)
        self.row_tokens = first.inputs.shape[1]
        tokens = settings.rows * self.row_tokens
        self.steps = settings.steps if settings.tokens is None else max(1, round(settings.tokens / tokens))
        self.distinct = settings.distinct or self.steps
        self._batch = (1, first)

    def __call__(self, step: int) -> CalibrationBatch:
        """Rows of a step, which is counted from 0."""
        begin = step % self.distinct * self.count
        parts: list[CalibrationBatch] = []
        for number in range(begin // self.size + 1, (begin + self.count - 1) // self.size + 2):
            low = max(0, begin - (number - 1) * self.size)
            high = min(self.size, begin + self.count - (number - 1) * self.size)
            parts.append(_part(self._draw(number), low, high))
        documents = [part.documents for part in parts if part.documents is not None]
        return CalibrationBatch(
            torch.cat([part.inputs for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat(documents) if len(documents) == len(parts) else None,
        )

    def _draw(self, number: int) -> CalibrationBatch:
        if self._batch[0] != number:
            self._batch = (number, self.draw(number))
        return self._batch[1]


def _part(batch: CalibrationBatch, low: int, high: int) -> CalibrationBatch:
    documents = None if batch.documents is None else batch.documents[low:high]
    return CalibrationBatch(batch.inputs[low:high], batch.targets[low:high], documents)


@torch.enable_grad()
@freed_memory_kept()
def heal(model: GPT, settings: Healing, context: Context, name: str = "") -> tuple[GPT, dict[str, Any]]:
    """A trained copy of `model`, and what was done: `steps, tokens, loss` (nats per token that counts, the mean of the
    last tenth) and what the targets say of themselves. Zeros that masks keep stay zero. `name`: of its file, where a
    method trains several times.

    Raises:
        InputError: the model holds integers, or a teacher has another vocabulary.
        LmforgeError: the loss is no number any more.
    """
    refuse_frozen(model, "a model can be trained", "put the step before it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = copy.deepcopy(model).float().to(device).train()
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    rows, train = Rows(context, settings), settings.train()
    teacher = Teacher.of(context, settings.teachers, device)
    targets: Targets = (
        LiveTargets(teacher, settings.temperature)
        if settings.teacher == "live"
        else CachedTargets(
            teacher,
            settings.temperature,
            context.folder.parent / "teacher",
            settings.samples,
            settings.proposal if settings.teacher == "sampled" else None,
            context.seed,
        )
    )
    optimizers = build_optimizers(student, train)
    warmup = settings.warmup if settings.warmup is not None else -(-rows.steps // 25)
    start = hash_json([digest(model), settings.model_dump(mode="json"), rows.steps])  # of another start is another file
    file = context.folder / f"{name}{start[:12]}-{TRAINING}"
    step, losses = _go_on(file, student, optimizers)
    while step < rows.steps:
        set_rate(optimizers, rate(step, rows.steps, warmup, settings.final_lr, settings.schedule))
        losses.append(_update(student, targets, rows(step), settings, optimizers, step))
        step += 1
        if step % max(1, -(-rows.steps // PARTS)) == 0 or step == rows.steps:
            _save(file, step, losses, student, optimizers)
            log(f"compress: healing: step {step} of {rows.steps}, loss {losses[-1]:.4f}")
    last = losses[-max(1, len(losses) // 10) :]
    details = {"steps": rows.steps, "tokens": rows.steps * rows.count * rows.row_tokens, "loss": sum(last) / len(last)}
    return student.to("cpu").eval().requires_grad_(False), details | targets.details()


def _update(
    student: GPT,
    targets: Targets,
    batch: CalibrationBatch,
    settings: Healing,
    optimizers: dict[str, torch.optim.Optimizer],
    step: int,
) -> float:
    """One step; returns its loss, a row at a time so that the logits of one row are all that are held."""
    total = 0.0
    counted = max(1, int(batch.counts.sum()))
    device = next(student.parameters()).device
    for row in batch.split(max(1, 2048 // batch.inputs.shape[1])):
        if not bool(row.counts.any()):
            continue
        with autocast(settings.precision, device):
            scale = torch.tensor(1 / counted, device=device)
            documents = None if row.documents is None else row.documents.to(device)
            hidden = student.hidden(row.inputs.to(device), documents=documents, loss_scale=scale)
            hidden = hidden[row.counts.to(device)]
            assert student.head is not None
            logits = student.head(hidden)
        loss = distillation_loss(logits.float(), hidden.float(), targets, row, settings) / counted
        loss.backward()
        total += float(loss.detach())
    if total != total:
        raise LmforgeError(f"healing: the loss of step {step + 1} is not a number; lower peak_lr ({settings.peak_lr})")
    torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def distillation_loss(
    logits: Tensor, hidden: Tensor, targets: Targets, row: CalibrationBatch, settings: Healing
) -> Tensor:
    """The loss over the predictions that count, in nats: logits (N,V), hidden (N,D) of the student → scalar, their sum.

    (1 − labels)·τ²·[(1 − reverse)·KL(p‖q) + reverse·KL(q‖p)] + labels·(−ln q_1[text]) + hidden·(1 − cos), p and q the
    teacher's and student's probabilities at temperature τ (Hinton et al. 2015, section 2; the reverse divergence: Gu et
    al. 2024, "MiniLLM", eq. 1). Of a cache the cross-entropy −Σ w ln q stands for KL(p‖q), which differs by the
    teacher's entropy alone.
    """
    loss = logits.new_zeros(())
    tau = settings.temperature
    student = F.log_softmax(logits / tau, -1)
    if settings.labels < 1 or settings.hidden:
        target = targets(row)
        forward = target.forward(student)
        if settings.reverse:
            teacher = target.log_probabilities()
            backward = (student.exp() * (student - teacher)).sum()
            forward = (1 - settings.reverse) * forward + settings.reverse * backward
        loss = loss + (1 - settings.labels) * tau**2 * forward
        if settings.hidden:
            loss = loss + settings.hidden * hidden_distance(hidden, target.hidden())
    if settings.labels:
        text = row.targets[row.counts].to(logits.device)
        loss = loss + settings.labels * F.cross_entropy(logits, text, reduction="sum")
    return loss


def hidden_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ 1 − cos between rows of last layers (N,D) (as DistilBERT's cosine loss: Sanh et al. 2019, section 3). Of
    unequal widths the rows' mutual angles are compared, which need no projection: Σ (cos_ij − cos'_ij)² / 2N."""
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher.float(), dim=-1)
    if student.shape == teacher.shape:
        return (1 - (student * teacher).sum(-1)).sum()
    return (student @ student.t() - teacher @ teacher.t()).square().sum() / (2 * len(student))


def _go_on(file: Path, student: GPT, optimizers: dict[str, torch.optim.Optimizer]) -> tuple[int, list[float]]:
    """Where a training that was stopped stands; fills student and optimizers."""
    if not file.is_file():
        return 0, []
    state = torch.load(file, weights_only=True, map_location=next(student.parameters()).device)
    student.load_state_dict(state["model"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    return int(state["step"]), list(state["losses"])


def _save(
    file: Path, step: int, losses: list[float], student: GPT, optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    content = io.BytesIO()
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    torch.save({"step": step, "losses": losses, "model": student.state_dict(), "optimizers": states}, content)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content.getvalue())
