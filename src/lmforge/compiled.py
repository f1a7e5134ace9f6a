"""Loops over bytes as machine code: `@compiled` on a function of NumPy arrays and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Number = Any  # a number inside compiled code: numba finds its type
Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` compiled by numba at its first call, kept on disk for the next process, and run without the interpreter's lock.

    Several threads may therefore be inside it at once; each must have arrays of its own to write to. Indices are not checked.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inlined(function: Function) -> Function:
    """As `compiled`, and written into each compiled function that calls it: a call costs as much as a few bytes of work."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")(function))
