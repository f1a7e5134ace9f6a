"""What is said before a training starts, where it can be seen that it will not learn: too few updates, an epoch that is
not finished, a label without examples, a base that knows nothing."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError
from lmforge.recipe import Recipe
from lmforge.train.schedule import TrainingSchedule
from lmforge.train.validate import Rows, Validator

FEW_UPDATES = (
    50  # Adam's averages of squares alone take 1 / (1 − 0.95) = 20 steps to settle, and the rate must fall too
)
NO_ORDER_KNOWN = 0.97  # of the nats of the same tokens in random order
NOTHING_KNOWN = 0.9  # of a uniform guess's nats: one who knows only which tokens are frequent is far below


def length_advice(recipe: Recipe, schedule: TrainingSchedule, training_tokens: int) -> Iterator[str]:
    """Whether there are enough updates, and enough of them to see the training text once."""
    steps, tokens = schedule.steps, schedule.tokens(schedule.steps)
    train = recipe.train
    longer = "train.steps" if train.steps else "finetune.epochs or train.tokens" if recipe.finetune else "train.tokens"
    if steps < FEW_UPDATES:
        smaller = max(schedule.context, tokens // FEW_UPDATES // schedule.context * schedule.context)
        batch = f"lower train.batch_tokens (now {train.batch_tokens:,}) to {smaller:,}, or "
        helps = not train.steps and smaller < train.batch_tokens  # the length is one of tokens
        yield f"{steps} updates are few to learn from; {batch if helps else ''}raise {longer}"
    if tokens < training_tokens:
        yield (
            f"{steps} steps read {tokens:,} of the {training_tokens:,} training tokens, "
            f"{tokens / training_tokens:.2f} of an epoch; raise {longer} for all of them"
        )


def label_advice(recipe: Recipe, corpus: Path) -> Iterator[str]:
    """Which labels of a classification have no example to learn from."""
    if not recipe.finetune or recipe.finetune.task != "classify":
        return
    counts = {split: Counter[str]() for split in ("train", "valid", "test")}
    with contextlib.suppress(InputError):  # no corpus beside these shards
        for split, labels in counts.items():
            labels.update(str(document["meta"]["answers"][0]) for document in read_documents(corpus, split))
        named = {*recipe.finetune.labels.values()}.union(*counts.values())
        for label in sorted(named - {*counts["train"]}):
            elsewhere = f"{counts['valid'][label]} in validation, {counts['test'][label]} in test"
            yield f"label {label!r} is in none of the {counts['train'].total()} training examples ({elsewhere})"


def base_advice(recipe: Recipe, validator: Validator, vocab_size: int) -> Iterator[str]:
    """Whether the base knows anything of the examples' text, questions included: it predicts it better than a uniform
    guess, or at least better than the same tokens in random order (a base may be sure and wrong about the marks between
    turns, which it never saw)."""
    if not recipe.finetune:
        return
    order = torch.randperm(validator.rows.inputs.shape[1], generator=torch.Generator().manual_seed(0))
    in_order = _mean_nats(validator, validator.rows)
    shuffled = _mean_nats(validator, validator.rows._replace(inputs=validator.rows.inputs[:, order]))
    uniform = math.log(vocab_size)
    if not in_order < NOTHING_KNOWN * uniform and not in_order < NO_ORDER_KNOWN * shuffled:
        yield (
            f"finetune.base predicts these examples with {in_order:.2f} nats a token, their tokens in random order "
            f"with {shuffled:.2f}, and a uniform guess has {uniform:.2f}: it knows nothing of such text; name a base "
            "that was trained on text like it"
        )


def _mean_nats(validator: Validator, rows: Rows) -> float:
    """Of each token of each text, not only of those that count."""
    targets = torch.full_like(rows.targets, -1)
    targets[:, :-1] = rows.inputs[:, 1:]
    if rows.documents is not None:
        targets[:, :-1][rows.documents[:, 1:] != rows.documents[:, :-1]] = -1
    counted = int((targets >= 0).sum())
    return float(validator.nats(rows._replace(targets=targets)).double().sum()) / max(1, counted)
