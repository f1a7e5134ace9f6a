"""When memory runs out in training: the plan's table, with what was measured beside it, and what to lower.

A GPU's allocator says so by an error of its own, torch's allocator on a CPU by a RuntimeError, Python by MemoryError.
What the kernel kills without a word leaves no time to say anything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lmforge.errors import DoesNotFit
from lmforge.machine import available_bytes, peak_bytes
from lmforge.model.gpt import GPT
from lmforge.plan.hardware import detect
from lmforge.plan.simulate import plan
from lmforge.progress import log
from lmforge.recipe import Recipe

if TYPE_CHECKING:
    from lmforge.train.step import TrainStep

_ASKED = re.compile(r"tried to allocate (\d+ bytes|[\d.]+ ?[KMG]?i?B)", re.IGNORECASE)


class InTraining(Protocol):
    """What is looked at of a training."""

    model: GPT
    optimizers: dict[str, torch.optim.Optimizer]
    step: TrainStep


class Watched:
    """The training under way, once there is one."""

    training: InTraining | None = None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@contextlib.contextmanager
def out_of_memory_told(recipe: Recipe, device: torch.device) -> Iterator[Watched]:
    """Around a training, which is handed in when it stands.

    Raises:
        DoesNotFit: memory ran out; the plan's table, with what was measured, has been printed.
    """
    watched = Watched()
    try:
        yield watched
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        for line in table(recipe, watched.training, device):
            log(line)
        asked = _ASKED.search(str(error))
        raise DoesNotFit(
            f"{recipe.name}: out of memory in training"
            + (f" when {asked[1]} more were asked for" if asked else "")
            + f"; {_advice(recipe, watched.training)}"
        ) from error


def table(recipe: Recipe, training: InTraining | None, device: torch.device) -> list[str]:
    """The plan's memory by component, MB, and what was measured of each, in lines."""
    if training is not None:
        size = training.step.plan.micro_batch_tokens * training.step.plan.replicas
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch_tokens": size})})
    figures = plan(recipe, detect(measure=False))
    planned, found = figures["memory_bytes_per_device"], _measured(training)
    lines = [f"{'memory, MB':<24}{'planned':>12}{'measured':>12}"]
    for name, size in planned.items():
        lines.append(f"{name:<24}{size / 1e6:>12,.1f}{f'{found[name] / 1e6:,.1f}' if name in found else '':>12}")
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    lines.append(f"{'all, at its peak':<24}{sum(planned.values()) / 1e6:>12,.1f}{peak / 1e6:>12,.1f}")
    lines.append(f"{'of the device':<24}{figures['device_memory_bytes'] / 1e6:>12,.1f}")
    lines.append(f"{'free now':<24}{'':>12}{free / 1e6:>12,.1f}")
    return lines


def _measured(training: InTraining | None) -> dict[str, int]:
    """Bytes of what can be told apart."""
    if training is None:
        return {}
    parameters = [*training.model.parameters()]
    states: list[Any] = [
        value
        for optimizer in training.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
    ]
    return {
        "weights": _bytes(parameters),
        "gradients": _bytes(each.grad for each in parameters if each.grad is not None),
        "optimizer": _bytes(value for value in states if isinstance(value, Tensor)),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _advice(recipe: Recipe, training: InTraining | None) -> str:
    """What to lower first."""
    context = recipe.tokens.context
    size = training.step.plan.micro_batch_tokens if training else recipe.train.micro_batch_tokens or 0
    if size > context:
        return f"lower train.micro_batch_tokens to {max(context, size // 2 // context * context)}"
    if not recipe.model.recompute and recipe.model.residual == "plain":
        return "set model.recompute = true, or lower tokens.context or the size of the model"
    return "lower tokens.context or the size of the model, or take more devices with parallel.shard"
