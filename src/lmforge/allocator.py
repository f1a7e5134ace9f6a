"""Memory that is freed and asked for again at once should not travel through the kernel.

A training step frees and allocates the same large blocks over and over. glibc gives blocks above 32 MiB (its largest
mmap threshold) back to the kernel each time, which must zero every page again: a fifth of the step's time for a small
network on two cores (docs/internals/log.md).

Learning a vocabulary is the opposite: arrays double and are dropped, and what counts is the most memory held at once.
So may be training that makes activations again to save memory: on long texts it frees blocks of many sizes, and a heap
that keeps them all ends twice as large as what is in use (docs/internals/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # mallopt(3)
# bytes: the activations of a long text; the pieces in which a feed-forward part or the logits are made again stay below
LARGE = 8 << 20
# glibc's own beginning; its threshold for a mapping of its own then moves up to 32 MiB, and once set it does not move
_FROM_THE_START = {_MMAP_MAX: 1 << 16, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 1 << 17}
_kept = False  # whether keep_freed_memory was called


def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return None


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next allocation; True where that was possible (Linux with glibc), else
    nothing changes."""
    global _kept
    mallopt = _mallopt()
    _kept = bool(
        mallopt and mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_TOP_PAD, 64 << 20)
    )
    return _kept


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, as after `keep_freed_memory`; outside, as glibc begins (or as `keep_freed_memory` made it).

    For what trains in a process that is not ours: without it a small network's step took 2.5 times as long on a virtual
    machine (docs/internals/log.md).
    """
    global _kept
    if _kept or not keep_freed_memory():
        yield
        return
    try:
        yield
    finally:
        _kept = False
        _set(_FROM_THE_START)
        give_back_freed_memory()


@contextlib.contextmanager
def freed_memory_returned(above: int = 1 << 18) -> Iterator[None]:
    """Inside, glibc hands arrays of `above` bytes and more back to the kernel as they are freed (it would keep up to 32
    MiB each)."""
    _set({**_FROM_THE_START, _MMAP_THRESHOLD: above, _TRIM_THRESHOLD: above})
    try:
        yield
    finally:
        if _kept:
            keep_freed_memory()
        else:
            _set(_FROM_THE_START)


def memory_for(returned: bool) -> contextlib.AbstractContextManager[None]:
    """The setting for training: blocks of `LARGE` bytes and more go back to the kernel as they are freed, or they are
    kept."""
    return freed_memory_returned(LARGE) if returned else freed_memory_kept()


def _set(values: dict[int, int]) -> None:
    mallopt = _mallopt()
    if mallopt:
        for setting, value in values.items():
            mallopt(setting, value)


def give_back_freed_memory() -> None:
    """Hand what is freed back to the system, where glibc is: many short strings leave gaps that it keeps otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
