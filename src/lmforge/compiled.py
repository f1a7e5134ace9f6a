"""Loops over bytes as machine code: `@compiled` on a function of NumPy arrays and numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import IndexDataCacheFile
from numba.core.registry import cpu_target

_load_index = IndexDataCacheFile._load_index


def _load_index_if_readable(self: Any) -> Any:
    """numba's index of what it compiled before, or none where it names a class that has another name by now: an
    upgrade in place must not fail on what the version before it left."""
    try:
        return _load_index(self)  # type: ignore[no-untyped-call]
    except (AttributeError, ImportError):
        return {}


IndexDataCacheFile._load_index = _load_index_if_readable  # type: ignore[method-assign]

Number = Any  # a number inside compiled code: numba finds its type
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` compiled by numba at its first call, kept on disk for the next process, and run without the
    interpreter's lock.

    Several threads may therefore be inside it at once; each must have arrays of its own to write to. Indices are not
    checked.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """As `compiled`, and written into each compiled function that calls it: a call costs as much as a few bytes of
    work."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")(function))


def quick(function: Function) -> Function:
    """As `compiled`, for sums over rows of numbers: they may be added in any order, so that several are worked on at
    once. No value may be infinite or no number. No array may be made inside, only views: who holds one is not counted
    (at each call and each slice otherwise, by atomic operations that take as long as twenty numbers of a row)."""
    uncounted: Any = {"_nrt": False}  # numba's own functions are so compiled, but it does not declare the option
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=True, **uncounted)(function))


def load_without_linear_algebra() -> None:
    """Have numba load what it needs before its first function, but not scipy's linear algebra: 18 MB that no loop of
    ours uses.

    numba takes scipy for an optional library, so while it loads, `scipy.linalg` is made to look absent (unless it is
    loaded already).
    """
    if "scipy.linalg" in sys.modules:
        return
    sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
    finally:
        del sys.modules["scipy.linalg"]
