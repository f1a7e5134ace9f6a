"""Where the time of a step goes: `train.profile` steps recorded operation by operation.

train/profile/step-NNNNNNNN.json    Chrome's trace format: chrome://tracing, ui.perfetto.dev
train/profile/step-NNNNNNNN.txt     the operations that took most of the time
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lmforge.progress import log
from lmforge.record import write_atomic

SETTLED = 2  # steps of a process before its profile: the first ones compile, allocate and read from the disk
SHOWN = 12  # operations


class Profile:
    """Records `steps` steps of this process once it has settled; none with 0. Tell it when each step ends."""

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        self.folder, self.steps, self.ended = folder, steps, 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self.profile: Any = profile(activities=activities) if steps else None

    def step_ended(self, step: int) -> None:
        """After step `step` (counted from 1): begin, or end and write."""
        if self.profile is None:
            return
        self.ended += 1
        if self.ended == SETTLED:
            self.profile.start()
        elif self.ended == SETTLED + self.steps:
            self._write(step)

    def close(self) -> None:
        """End what is still being recorded; it is not written."""
        if self.profile is not None and self.ended >= SETTLED:
            self.profile.stop()
        self.profile = None

    def _write(self, step: int) -> None:
        self.profile.stop()
        averages = self.profile.key_averages()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / f"step-{step:08d}"
        self.profile.export_chrome_trace(str(name.with_suffix(".json")))
        table = top_operations(averages)
        write_atomic(name.with_suffix(".txt"), table)
        log(
            f"train: profile of steps {step - self.steps + 1} to {step} in "
            f"{name.with_suffix('.json')}\n{table.rstrip()}"
        )
        self.profile = None


def top_operations(averages: Any) -> str:
    """A table of the operations with the most time of their own: share, milliseconds, calls; a GPU's time where there
    is some."""
    rows = [
        (event.key, max(event.self_device_time_total, 0) or 0, event.self_cpu_time_total, event.count)
        for event in averages
    ]
    device = 1 if any(row[1] for row in rows) else 2
    rows.sort(key=lambda row: -row[device])
    total = sum(row[device] for row in rows) or 1
    lines = [f"{'share':>6}  {'ms':>10}  {'calls':>8}  operation"]
    lines += [
        f"{100 * row[device] / total:5.1f}%  {row[device] / 1000:10.1f}  {row[3]:8d}  {row[0]}" for row in rows[:SHOWN]
    ]
    return "\n".join(lines) + "\n"
