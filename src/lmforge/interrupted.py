"""What Ctrl-C says: one line, and the status that shells give it."""

from __future__ import annotations

import sys
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
