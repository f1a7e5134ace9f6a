"""Where compiled code is kept, so that the next run of the same network does not compile it again."""

from __future__ import annotations

import os
from pathlib import Path

from lmforge.record import cache_directory

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # which torch asks whenever it compiles; its own default is a temporary folder


def keep_compiled_code() -> Path:
    """Let torch keep what it compiles in the user's cache folder, unless the environment names another; gives back the folder."""
    return Path(os.environ.setdefault(FOLDER, str(cache_directory() / "compiled")))
