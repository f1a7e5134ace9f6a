"""Where compiled code is kept, so that the next run of the same network does not compile it again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lmforge.record import cache_directory

FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # which torch asks whenever it compiles; its own default is a temporary folder
_TORCHS = "torch._inductor.runtime.cache_dir_utils"


def keep_compiled_code() -> Path:
    """Let torch keep what it compiles in the user's cache folder, unless the environment names another; gives back the
    folder.

    Torch writes its default into the environment as soon as anything imports its compiler: that is nobody's wish, and
    is replaced.
    """
    torchs = getattr(sys.modules.get(_TORCHS), "default_cache_dir", lambda: None)()
    if os.environ.get(FOLDER) in (None, torchs):
        os.environ[FOLDER] = str(cache_directory() / "compiled")
    return Path(os.environ[FOLDER])
