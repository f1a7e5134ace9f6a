"""What of a run is remembered: a few numbers of its own, and the state of every part that has some, collected here.

    state.json  {step, seconds, best_step, best_valid, way, way_on, valid, stability, scaler, noise}
                 └────────────── TrainState's own ───────────────────┘  └─ one entry a part ──┘

A new part that remembers something needs `Stateful`'s two methods and its name in `Trainer`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

from lmforge.train.autotune import ExecutionPlan


class Stateful(Protocol):
    """A part of a run that remembers something, as torch's optimizers do."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, for the checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Remember this instead; an empty state is that before the first step."""
        ...


class TrainState:
    """Where a run is: steps done and their seconds, its validation figures, how it is executed, and its parts."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        """`parts` by the name that each has in the checkpoint."""
        self.parts = dict(parts)
        self.plan: ExecutionPlan | None = None
        self.plan_on: list[Any] | None = None  # kind of device and number of ranks that the plan was chosen for
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """As the checkpoint's state.json has it."""
        own = {
            "step": self.step,
            "seconds": self.seconds,
            "best_step": self.best_step,
            "best_valid": self.best_valid,
            "way": dataclasses.asdict(self.plan) if self.plan else None,
            "way_on": self.plan_on,
            "valid": self.valid,
        }
        return own | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """As it was at a checkpoint, or with an empty state before the first step. A plan that was chosen stays."""
        self.step: int = state.get("step", 0)
        self.seconds: float = state.get("seconds", 0.0)
        self.best_step: int | None = state.get("best_step")
        self.best_valid: float = state.get("best_valid", math.inf)  # bits per byte
        self.valid: float = state.get("valid", math.inf)  # at the last validation
        if self.plan is None and state.get("way"):
            self.plan, self.plan_on = ExecutionPlan(**state["way"]), state.get("way_on")
        for name, part in self.parts.items():
            part.load_state_dict(state.get(name) or {})

    def note_validation(self) -> None:
        """A checkpoint is about to keep the weights that the last validation saw; the best is remembered."""
        if self.valid < self.best_valid:
            self.best_step, self.best_valid = self.step, self.valid
