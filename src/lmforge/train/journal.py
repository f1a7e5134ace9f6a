"""`metrics.jsonl`: one JSON object a step, each step exactly once however often the run was stopped; and what of the
machine a step used."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from lmforge.plan.hardware import matrix_speed
from lmforge.progress import Bar
from lmforge.train.profile import Profile
from lmforge.train.schedule import TrainingSchedule
from lmforge.train.tensorboard import EventFile


class Journal:
    """Appends to a metrics file; opened at a step, it first drops what came after it (a killed run may have got
    further)."""

    def __init__(self, path: Path, step: int, events: EventFile | None = None) -> None:
        """`events`: where the numbers go too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if line["step"] <= step]
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self.file: TextIO = path.open("a")
        self.events = events

    def write(self, **values: Any) -> None:
        """Add one line; it reaches the file at once."""
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if self.events:
            self.events.add(values["step"], values)

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        if self.events:
            self.events.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


matrix_peak = cache(matrix_speed)  # measured once in a process, in a fraction of a second


class Meter:
    """What a step used of the machine."""

    def __init__(self, flops: Callable[[int], float], device: torch.device, devices: int) -> None:
        """`flops(context)`: operations for each token of rows of `context`. `devices` share the work: GPUs, or 1 for
        the processes on one CPU."""
        self.flops, self.device = flops, device
        self.process, self.devices = psutil.Process(), devices

    def read(self, tokens_per_second: float, context: int) -> dict[str, float]:
        """Tokens a second; `utilization`, the share of the measured matrix peak that these tokens' products make;
        memory: resident on a CPU, the largest amount allocated on a GPU."""
        memory = (
            self.process.memory_info().rss
            if self.device.type == "cpu"
            else torch.cuda.max_memory_allocated(self.device)
        )
        share = self.flops(context) * tokens_per_second / (matrix_peak() * self.devices)
        return {"tokens_per_second": round(tokens_per_second), "utilization": round(share, 4), "memory_bytes": memory}


class Observers:
    """What is told of each step: bar, journal with the machine's figures, profile."""

    def __init__(
        self, schedule: TrainingSchedule, bar: Bar, journal: Journal | None, meter: Meter, profile: Profile
    ) -> None:
        """`journal`: of the rank that writes."""
        self.schedule, self.bar, self.journal, self.meter, self.profile = schedule, bar, journal, meter, profile

    def step_ended(self, step: int, seconds: float, figures: Mapping[str, Any]) -> None:
        """After `step` (from 0), `seconds` into the run, with what it gave."""
        schedule = self.schedule
        note = f"bits/byte {figures['bits_per_byte']:.3f}" if "bits_per_byte" in figures else "skipped"
        amount = schedule.tokens(step + 1) - schedule.tokens(step)
        self.bar.step(amount, f"step {step + 1}/{schedule.steps} {note}")
        if self.journal:
            self.journal.write(
                step=step + 1,
                tokens=schedule.tokens(step + 1),
                seconds=round(seconds, 3),
                **self.meter.read(self.bar.rate, schedule.context_at(step)),
                **figures,
            )
        self.profile.step_ended(step + 1)
