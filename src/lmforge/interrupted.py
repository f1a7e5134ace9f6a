"""What Ctrl-C says: one line, and the status that shells give it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from typer.core import TyperGroup

from lmforge.progress import log

INTERRUPTED = 130  # 128 + SIGINT
GOES_ON = ("run", "corpus", "tokens", "train", "compress", "evaluate")  # commands that go on where they were


class Commands(TyperGroup):
    """Commands of which Ctrl-C ends each with one line and status 130 (the library's own says "Aborted!")."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = "; what was finished is kept, the same command goes on from there"
            log("lmforge: stopped" + kept * (ctx.invoked_subcommand in GOES_ON))
            sys.exit(INTERRUPTED)


@contextlib.contextmanager
def ctrl_c_heeded() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C raises KeyboardInterrupt as always, and the function that this gives, called once a round of a
    long loop, raises it again: where it falls into a library's clean-up or a look for an attribute from C, it is lost.
    Off the main thread, and where somebody else heeds Ctrl-C, nothing changes."""
    pressed: list[bool] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(True)
        signal.default_int_handler(number, frame)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
