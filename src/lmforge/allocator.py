"""Memory that is freed and asked for again at once should not travel through the kernel.

A training step frees and allocates the same large blocks over and over. glibc gives blocks above 32 MiB (its largest mmap threshold) back
to the kernel each time, which must zero every page again: a fifth of the step's time for a small network on two cores (docs/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next allocation; True where that was possible (Linux with glibc), else nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_TOP_PAD, 64 << 20))


def give_back_freed_memory() -> None:
    """Hand what is freed back to the system, where glibc is: many short strings leave gaps that it keeps otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
