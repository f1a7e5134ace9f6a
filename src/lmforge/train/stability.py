"""Steps that would harm a run: found before their update, skipped, their cause named; and going back when skipping does
not end them.

    loss, gradient norm ─judge─▶ fine ─▶ update
                           └───▶ not finite, or far above the last losses ─▶ no update, the batch is left out; which
                           rows, documents, layer?
                                    └─ `PATIENCE` in a row ─▶ back to the newest checkpoint, without the batches that
                                    led here
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError, LmforgeError
from lmforge.record import write_atomic
from lmforge.tokens.shards import Shards

PATIENCE = 3  # skipped steps in a row, after which the weights themselves are suspected
MOST_RETURNS = 2  # to a checkpoint, in a run
MOST_NAMED = 20  # documents of a skipped batch
MOST_SEARCHED = 2_000_000_000  # bytes of a split whose documents are searched for their ids


class Diverged(LmforgeError):
    """`PATIENCE` steps in a row had to be skipped; `steps` are they, counted from 0."""

    def __init__(self, steps: list[int], cause: str) -> None:
        super().__init__(cause)
        self.steps = steps


class Stability:
    """Judges each step by the losses of those before it.

    A loss is a spike when it exceeds their median by the median itself, by ten times their spread (1.4826 · median
    absolute deviation, which is the standard deviation of a normal distribution) and by half a nat. A gradient that is
    large though the loss is not is left to clipping.
    """

    WINDOW, LEAST = 64, 8  # losses remembered; losses without which nothing is called a spike

    def __init__(self, state: Mapping[str, Any] | None = None, changes: Collection[int] = ()) -> None:
        """`changes`: steps at which other text, or rows of another length, begin; what is usual is learned anew from
        there."""
        self.losses: list[float] = [*(state or {}).get("losses", ())]
        self.skipped: list[int] = [*(state or {}).get("skipped", ())]  # in a row, up to now
        self.changes = frozenset(changes)

    @property
    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"losses": self.losses, "skipped": self.skipped}

    def judge(self, step: int, loss: float, norm: float) -> str | None:
        """What is wrong with a step (counted from 0), in words; None when nothing is, and its loss is remembered."""
        if step in self.changes:
            self.losses = []
        cause = self._cause(loss, norm)
        if cause is None:
            self.losses, self.skipped = [*self.losses, loss][-self.WINDOW :], []
        else:
            self.skipped = [*self.skipped, step]
        return cause

    def check(self, cause: str) -> None:
        """After a skipped step.

        Raises:
            Diverged: it was the last of `PATIENCE`.
        """
        if len(self.skipped) >= PATIENCE:
            raise Diverged(self.skipped, cause)

    def _cause(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"the loss is {loss:g}, the gradient norm {norm:g}"
        if len(self.losses) < self.LEAST:
            return None
        usual = statistics.median(self.losses)
        spread = 1.4826 * statistics.median(abs(each - usual) for each in self.losses)
        if loss - usual > max(usual, 10 * spread, 0.5):
            return (
                f"the loss is {loss:.4g}, {loss / usual:.1f} times that of the last {len(self.losses)} steps "
                f"({usual:.4g})"
            )
        return None


class SkippedBatches:
    """The steps whose batches are left out after a return to a checkpoint; in a file of its own, as checkpoints are
    older than the return."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = json.loads(path.read_text()) if path.exists() else {}
        self.steps: frozenset[int] = frozenset(content.get("steps", ()))
        self.returns: int = content.get("returns", 0)

    def add(self, steps: Collection[int], write: bool) -> None:
        """Leave these out as well from now on."""
        self.steps, self.returns = self.steps | set(steps), self.returns + 1
        if write:
            write_atomic(self.path, json.dumps({"steps": sorted(self.steps), "returns": self.returns}) + "\n")


def document_ids(corpus: Path, shards: Shards, numbers: Sequence[int]) -> list[str]:
    """The ids of documents by their number in a split; "number N of the train split" where the corpus is gone or too
    large to search.

    A shard keeps one kind's documents in the order of the corpus, so a document is known by how many of its kind come
    before it.
    """
    labels = shards.labels
    kinds = {number: (shards.sources[labels[number, 0]], shards.genres[labels[number, 1]]) for number in numbers}
    places = {
        (*kinds[number], int((labels[:number] == labels[number]).all(axis=1).sum())): number for number in numbers
    }
    found: dict[int, str] = {}
    if shards.bytes <= MOST_SEARCHED:
        seen: Counter[tuple[str, str]] = Counter()
        with contextlib.suppress(InputError):  # no corpus beside these shards
            for document in read_documents(corpus, shards.split):
                kind = str(document.get("source", "unknown")), str(document.get("genre", "unknown"))
                number = places.get((*kind, seen[kind]))
                seen[kind] += 1
                if number is not None:
                    found[number] = str(document.get("id"))
                    if len(found) == len(places):
                        break
    return [found.get(number, f"number {number} of the {shards.split} split") for number in numbers]


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number."""
    return bool(torch.isfinite(tensor).all())


def first_bad_gradient(model: nn.Module) -> str | None:
    """The parameter nearest to the loss whose gradient is not finite; None where all are."""
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not is_finite(parameter.grad)
    ]
    # tied to the output, it is bad whenever anything is
    inside = [name for name in bad if not name.startswith("embed.")]
    return (inside or bad)[-1] if bad else None


def first_non_finite(model: nn.Module, loss: Callable[[], Tensor]) -> str:
    """Where in the network numbers first stop being finite: runs `loss`, and its backward pass when that was fine;
    gradients are dropped."""
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return f"weights {name}"
    found: list[str] = []

    def look(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not is_finite(output):
            found.append(name)

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    try:
        value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"output of {found[0]}"
    if not is_finite(value):
        return "the loss itself"
    value.backward()
    bad = first_bad_gradient(model)
    model.zero_grad(set_to_none=True)
    return f"gradient of {bad}" if bad else "nothing, when its rows are computed alone"
