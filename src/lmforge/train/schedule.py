"""What happens at which step: batch sizes, lengths of rows, rates, what follows. Pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lmforge.errors import InputError
from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import ramp_of
from lmforge.tokens.mixture import Schedule, at
from lmforge.train.optim import rate, set_rate


class TrainingSchedule:
    """The course of a training over its steps, which are counted from 0."""

    def __init__(self, recipe: Recipe, data_size: int) -> None:
        """`data_size`: processes that share the rows of a batch.

        Raises:
            InputError: a batch has less than one row for each of them.
        """
        settings = recipe.train
        self.settings, self.context, self.ramp = settings, recipe.tokens.context, ramp_of(recipe)
        least = min([tokens for _, tokens in settings.batch_schedule] or [settings.batch_tokens])
        if least < data_size * self.context:
            raise InputError(
                f"train.batch_tokens: {least} is less than one row of {self.context} tokens for each process; raise it"
            )
        self.steps = self.ramp.steps
        self.warmup = settings.warmup if settings.warmup is not None else min(2000, math.ceil(self.steps * 0.04))
        self.save_every = settings.checkpoint_every or math.ceil(self.steps / 5)
        self.validate_every = settings.validate_every or math.ceil(self.steps / 10)

    def tokens(self, step: int) -> int:
        """Tokens of the first `step` batches, in all ranks."""
        return self.ramp.before(step) * self.context

    def batch_tokens(self, step: int) -> int:
        """Tokens of the batch of `step`, in all ranks."""
        return self.ramp.rows(step) * self.context

    def context_at(self, step: int) -> int:
        """The length of rows in `step`."""
        return int(at(self.settings.context_schedule or ((0.0, self.context),), step / self.steps))

    def changes(self, weights: Sequence[Schedule]) -> set[int]:
        """The steps at which the text drawn (by the weights of its groups), or the length of rows, becomes another."""
        schedules = [self.settings.context_schedule, *weights]
        return {math.ceil(begin * self.steps) for schedule in schedules for begin, _ in schedule}

    def set_rates(self, optimizers: dict[str, torch.optim.Optimizer], step: int) -> float:
        """Give every optimizer the rates of `step`; returns their share of the peak."""
        share = rate(step, self.steps, self.warmup, self.settings.final_lr, self.settings.schedule)
        linear = self.settings.weight_decay_schedule == "linear"
        set_rate(optimizers, share, 1 - step / self.steps if linear else 1.0)
        return share

    def validates_after(self, step: int) -> bool:
        """Whether validation, and the statistics that go with it, follow `step`."""
        return (step + 1) % self.validate_every == 0 or step + 1 == self.steps

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`."""
        return (step + 1) % self.save_every == 0
