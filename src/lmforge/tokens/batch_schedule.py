"""How large each step's batch is, where it grows over the training: small while the gradient is clear, large when it is
noisy.

    batch_schedule [[0, 2048], [0.5, 8192]] ─▶ rows of step s, and rows of all steps before it: pure functions of s

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2: the batch worth its tokens grows as the
loss falls.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from lmforge.recipe import Recipe

DEFAULT_TOKENS = 20_000_000  # of a run that states neither steps nor tokens


class Ramp:
    """Rows of each of `steps` batches."""

    def __init__(self, schedule: Sequence[tuple[float, int]], steps: int) -> None:
        """`schedule`: (share of training from which it holds, rows) pairs, the first share 0."""
        self.steps = steps
        self.begins = [math.ceil(begin * steps) for begin, _ in schedule]
        self.sizes = [size for _, size in schedule]
        spans = [(stop - start) * size for (start, stop), size in zip(pairwise(self.begins), self.sizes, strict=False)]
        self.taken = [sum(spans[:part]) for part in range(len(self.sizes))]  # rows before each part

    def _part(self, step: int) -> int:
        return bisect_right(self.begins, step) - 1

    def rows(self, step: int) -> int:
        """Rows of the batch of `step` (from 0)."""
        return self.sizes[self._part(step)]

    def before(self, step: int) -> int:
        """Rows of all batches before that of `step`; with `steps`, of the whole training."""
        part = self._part(step)
        return self.taken[part] + (step - self.begins[part]) * self.sizes[part]


def with_length(recipe: Recipe, training_tokens: int) -> Recipe:
    """A recipe that fine-tunes and states no length, with the length of its epochs over so many tokens; any other as it
    is."""
    if not recipe.finetune or recipe.train.steps or recipe.train.tokens:
        return recipe
    tokens = math.ceil(recipe.finetune.epochs * training_tokens)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"tokens": tokens})})


def ramp_of(recipe: Recipe) -> Ramp:
    """The batches of a recipe's training, in whole rows of its context; how many from `train.steps` or
    `train.tokens`."""
    train, context = recipe.train, recipe.tokens.context
    schedule = [
        (begin, max(1, tokens // context)) for begin, tokens in train.batch_schedule or ((0.0, train.batch_tokens),)
    ]
    ends = [*(begin for begin, _ in schedule[1:]), 1.0]
    mean = sum((end - begin) * rows for (begin, rows), end in zip(schedule, ends, strict=True)) * context
    steps = math.ceil((train.tokens or DEFAULT_TOKENS) / mean) if train.steps is None else train.steps
    return Ramp(schedule, steps)
