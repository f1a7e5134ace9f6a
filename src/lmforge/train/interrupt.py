"""Stopping before the end: Ctrl-C, SIGTERM, or a time that is over. All ranks stop after the same step."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator

from lmforge.parallel.layout import Layout
from lmforge.progress import log_once


class StopRequest:
    """Whether the run is asked to stop."""

    def __init__(self, asked: threading.Event, max_seconds: float | None) -> None:
        self.asked, self.deadline = asked, time.monotonic() + (max_seconds or math.inf)

    def agreed(self, layout: Layout) -> bool:
        """Whether any rank is to stop; every rank asks after the same step, and gets the same answer."""
        return layout.anyone(self.asked.is_set() or time.monotonic() > self.deadline)


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one acts as usual. Handlers are put back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        stop.set()
        log_once("train: finishing this step, then saving (again to stop at once)")
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
