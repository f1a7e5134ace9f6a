"""Steps that would harm a run: found before their update, skipped, their cause named; and going back when skipping does
not end them.

    loss, gradient norm ─judge─┬▶ fine ─▶ update
                               └▶ not finite, or far above the last losses ─▶ no update, the batch is left out
                                    │                                         (which documents, layer: `diagnose`)
                                    └ `PATIENCE` in a row ─▶ back to the newest checkpoint, without the batches that led
                                                             here
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lmforge.errors import LmforgeError
from lmforge.record import write_atomic

PATIENCE = 3  # skipped steps in a row, after which the weights themselves are suspected
MOST_RETURNS = 2  # to a checkpoint, in a run


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

    def __init__(self, changes: Collection[int] = ()) -> None:
        """`changes`: steps at which other text, or rows of another length, begin; what is usual is learned anew from
        there."""
        self.changes = frozenset(changes)
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"losses": self.losses, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """As it was at a checkpoint; with an empty state, before the first step."""
        self.losses: list[float] = [*state.get("losses", ())]
        self.skipped: list[int] = [*state.get("skipped", ())]  # in a row, up to now

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
