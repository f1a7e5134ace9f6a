"""Large pages under weights: a step of decoding reads all of them once, and with pages of 4 kB the processor spends as
much time finding them as reading them (measured: docs/internals/log.md).

Linux puts large pages under memory that asks for them when it is first touched; tensors that are there already are
moved by MADV_COLLAPSE (Linux 6.1 on), one page of 2 MB after the other. Elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable

from torch import Tensor

PAGE = 2 << 20
TRIED = 8  # pages, before it is given up
LEAST = 4 * PAGE  # of weights: less than that stays near the processor anyway
_HUGE, _COLLAPSE = 14, 25  # madvise(2)


@functools.cache
def _advise() -> Callable[[int, int, int], bool] | None:
    """The system's madvise: whether it did so."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lambda place, size, advice: call(place, size, advice) == 0


def pages_of(tensors: Iterable[Tensor]) -> list[int]:
    """Where the large pages begin that tensors fill to more than half."""
    filled: Counter[int] = Counter()
    for begin, size in {(tensor.data_ptr(), tensor.nbytes) for tensor in tensors if tensor.is_cpu}:
        for page in range(begin // PAGE, (begin + size - 1) // PAGE + 1):
            filled[page] += min(begin + size, (page + 1) * PAGE) - max(begin, page * PAGE)
    return sorted(page * PAGE for page, share in filled.items() if share > PAGE // 2)


def on_large_pages(tensors: Iterable[Tensor]) -> int:
    """Move tensors to large pages where they lie, as far as the system lets; returns the bytes that are on such now.
    Numbers and addresses stay as they are."""
    advise, pages = _advise(), pages_of(tensors)
    if advise is None or len(pages) * PAGE < LEAST:
        return 0
    moved = 0
    for number, page in enumerate(pages):
        advise(page, PAGE, _HUGE)
        moved += PAGE * advise(page, PAGE, _COLLAPSE)
        if number == TRIED and not moved:  # an older system, or none is free
            break
    return moved
