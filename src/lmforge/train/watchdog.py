"""Tells of work that hangs: which rank, at which step, in which operation, and where in the code every thread is.

It ends nothing: a slow disk looks like a hang, and the process group ends by itself what waits for a lost rank.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from lmforge.progress import format_duration, log

LEAST = 120.0  # seconds before anything is called a hang
TIMES = 20.0  # as long as the longest time that the same operation took so far


def where_threads_are() -> None:
    """The stack of every thread, on stderr."""
    try:
        faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
    except (AttributeError, OSError, ValueError):  # stderr is no file
        log("train: (no place to write the stacks of threads to)")


class Watchdog:
    """`with Watchdog(rank) as watch: … watch.doing(step, "reading the batch")`; `doing` costs a microsecond."""

    def __init__(
        self,
        rank: int,
        least: float = LEAST,
        tell: Callable[[str], None] = log,
        stacks: Callable[[], None] = where_threads_are,
    ) -> None:
        self.rank, self.least, self.tell, self.stacks = rank, least, tell, stacks
        self.now: tuple[int, str, float] | None = None  # step (from 1), operation, since when
        self.longest: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lmforge-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def doing(self, step: int, operation: str) -> None:
        """From now on this is being done."""
        before, clock = self.now, time.monotonic()
        if before:
            self.longest[before[1]] = max(self.longest.get(before[1], 0.0), clock - before[2])
        self.now = step, operation, clock

    def where(self) -> tuple[int, str]:
        """The step (from 1) and the operation of now."""
        return (self.now[0], self.now[1]) if self.now else (0, "beginning")

    def _watch(self) -> None:
        told: tuple[int, str, float] | None = None
        while not self._over.wait(self.least / 8):
            now = self.now
            if now is None or now == told:
                continue
            step, operation, since = now
            taken = time.monotonic() - since
            if taken > max(self.least, TIMES * self.longest.get(operation, 0.0)):
                told = now
                usual = (
                    f"; before it never took more than {format_duration(self.longest[operation])}"
                    if operation in self.longest
                    else ""
                )
                self.tell(
                    f"train: rank {self.rank}: step {step}: {operation} has taken {format_duration(taken)} so "
                    f"far{usual}; "
                    "where each thread is:"
                )
                self.stacks()
