"""Up to which step a training of one length and the same training of another length are one and the same: a longer
training may go on from a checkpoint before that.

What a step does depends on the length by its learning rate, weight decay, batch, row length and mixture of texts, all
of which are pure functions of the step and the length; and the averages of the end must not have begun.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import Ramp, ramp_of, with_length
from lmforge.tokens.mixture import at, curricula
from lmforge.train.ensemble import MovingAverage, snapshot_steps
from lmforge.train.optim import rate


class Course:
    """What depends on the length of a recipe's training, step by step."""

    def __init__(self, recipe: Recipe, training_tokens: int) -> None:
        recipe = with_length(recipe, training_tokens)
        self.settings, self.ramp = recipe.train, ramp_of(recipe)
        self.steps, self.rows = self.ramp.steps, self.ramp.before(self.ramp.steps)
        stated = self.settings.warmup
        self.warmup = stated if stated is not None else min(2000, math.ceil(self.steps * 0.04))
        weights = [*curricula(recipe).values(), *(w for w in self.settings.mixture.values() if isinstance(w, tuple))]
        self.bounds = sorted({round(begin * self.rows) for weight in weights for begin, _ in weight})

    def at(self, step: int) -> dict[str, object]:
        """{what, in words: its value} in step `step` (from 0)."""
        settings, ramp = self.settings, self.ramp
        context = settings.context_schedule
        return {
            f"the learning rate ({settings.schedule} schedule, warm-up of {self.warmup} steps)": (
                rate(step, self.steps, self.warmup, settings.final_lr, settings.schedule)
            ),
            "the weight decay, which falls with the length": (
                1 - step / self.steps if settings.weight_decay_schedule == "linear" else 1.0
            ),
            "the batch schedule": (ramp.before(step), ramp.rows(step)),
            "the context schedule": at(context, step / self.steps) if context else None,
            "the mixture of texts": [bound for bound in self.bounds if bound <= _last_row(ramp, step)],
        }

    @property
    def averages_begin(self) -> int:
        """The number of steps after which weights are kept or averaged for the choice at the end."""
        if not self.settings.ensemble:
            return self.steps
        return min(
            snapshot_steps(self.steps, self.settings.ensemble)[0] - 1, MovingAverage(nn.Identity(), self.steps).begins
        )


def _last_row(ramp: Ramp, step: int) -> int:
    return ramp.before(step) + ramp.rows(step) - 1


def common_start(old: Course, new: Course, checkpoints: Iterable[int]) -> tuple[int | None, str]:
    """(the latest of some checkpoints, given by their steps, that both trainings pass through, or None; what differs
    after it, in words)."""
    steps = sorted(checkpoints)
    latest, why = min(old.steps, new.steps), "the shorter one ends"
    for course in (old, new):
        if course.averages_begin < latest:
            latest, why = course.averages_begin, "the averages of the end begin"
    for step in range(min(latest, steps[-1] if steps else 0)):
        a, b = old.at(step), new.at(step)
        different = [one for one, other in zip(a, b, strict=True) if a[one] != b[other]]
        if different:
            latest, why = step, f"{different[0]} is another in step {step + 1}"
            break
    return max((step for step in steps if 0 < step <= latest), default=None), why
