"""Progress of long work, on stderr: a bar with rate and time left on a terminal, one plain line now and then
elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
PLAIN_SECONDS = 15.0


def log(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def launched_rank() -> int:
    """Which of the processes of a launcher (torchrun) this is; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def log_once(text: str) -> None:
    """`log` for what every rank comes to: rank 0 says it."""
    if launched_rank() == 0:
        log(text)


def format_duration(seconds: float) -> str:
    """12.3 → '12 s', 75 → '1 min 15 s', 7300 → '2 h 2 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


class Bar:
    """`with Bar("train", total=1000, unit="tok") as bar: bar.step(8192, "loss 2.31")`.

    `amount` counts units of `unit`; the rate shown is units per second since this bar began.
    """

    def __init__(self, title: str, total: float | None, unit: str = "it", done: float = 0) -> None:
        self.title, self.total, self.unit, self.done, self.first = title, total, unit, done, done
        self.note = ""
        self.started = self.spoken = time.monotonic()
        self.rich: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            self.rich = Progress(
                TextColumn("{task.description:>10}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.rich.start()
            self.task = self.rich.add_task(self.title, total=self.total, completed=round(self.done), note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rich:
            self.rich.stop()

    @property
    def rate(self) -> float:
        """Units per second since this bar began; 0 while none is done."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Until `total`, at the rate so far; None while no rate is known."""
        if self.total is None or self.rate <= 0:
            return None
        return max(0.0, self.total - self.done) / self.rate

    def step(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` units done; `note` stands beside the bar."""
        self.done += amount
        self.note = note
        rate = f"{self.rate:,.0f} {self.unit}/s" if self.rate > 0 else ""
        if self.rich and self.task is not None:
            self.rich.update(self.task, completed=self.done, note=f"{rate}  {note}".strip())
        elif time.monotonic() - self.spoken > PLAIN_SECONDS:
            self.spoken = time.monotonic()
            share = f"{100 * self.done / self.total:.0f}%" if self.total else f"{self.done:,.0f} {self.unit}"
            left = f"{format_duration(self.seconds_left)} left" if self.seconds_left is not None else ""
            log(f"{self.title}: {', '.join(part for part in (share, rate, left) if part)}{'  ' + note if note else ''}")


def track(items: Iterable[Item], title: str, total: float | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate over `items` under a bar."""
    with Bar(title, total, unit) as bar:
        for item in items:
            yield item
            bar.step()
