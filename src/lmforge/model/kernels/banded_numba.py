"""The loops of `banded` as machine code: one head's band and extras, a block of queries at a time, in scratch that
never leaves the cache.

    for each block of queries:  scores (size, band + extras) ─softmax by row─▶ shares ─▶ products with what the block
    sees

Matrix products are the library's own (its BLAS, called by address); between them rows are worked on where they lie.
Called from PyTorch operation by operation, the same blocks spend a third of their time on calls and on scores that went
out to memory (docs/internals/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import torch

from lmforge.compiled import Number, compiled, quick

Floats = np.ndarray[tuple[int], np.dtype[np.floating]]
_LOG2_E = 1.4426950408889634
# 2^f where |f| ≤ 1/2, off by at most 7.5e-8 of it: of all polynomials of the fifth degree the closest (Remez 1934)
_POWERS = tuple(
    np.float32(x)
    for x in (1.327647199e-03, 9.675541334e-03, 5.550713273e-02, 2.402211972e-01, 6.931469671e-01, 1.000000072e00)
)
_ONE, _HALF, _LEAST, _BIAS, _MANTISSA = np.float32(1), np.float32(0.5), np.float32(-126), np.int32(127), np.int32(23)
_SIGN, _REST, _LOWEST = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-0x80000000)
_N, _T = ord("N"), ord("T")


def _library() -> ctypes.CDLL | None:
    """The library that holds PyTorch's matrix products, where it lets them be called."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        library_file = Path(torch.__file__).parent / "lib" / name
        if library_file.exists():
            library = ctypes.CDLL(str(library_file))
            return library if hasattr(library, "sgemm_") and hasattr(library, "dgemm_") else None
    return None


_blas = _library()
for _name in ("sgemm", "dgemm"):
    _address = (ctypes.cast(getattr(_blas, f"{_name}_"), ctypes.c_void_p).value if _blas
                else numba.extending.get_cython_function_address("scipy.linalg.cython_blas", _name))  # fmt: skip
    llvmlite.binding.add_symbol(f"lmforge_{_name}", _address)
_signature = numba.void(*[numba.intp] * 13)
_single = numba.types.ExternalFunction("lmforge_sgemm", _signature)
_double = numba.types.ExternalFunction("lmforge_dgemm", _signature)
_threads_here = getattr(_blas, "MKL_Set_Num_Threads_Local", None)


@contextlib.contextmanager
def in_this_thread() -> Iterator[None]:
    """Inside, products of the calling thread do not spread to others (where the library is Intel's)."""
    if _threads_here:
        _threads_here(1)
    try:
        yield
    finally:
        if _threads_here:
            _threads_here(0)


@compiled
def _product(
    room: Number,
    m: int,
    n: int,
    k: int,
    alpha: float,
    a: Number,
    a_turned: bool,
    b: Number,
    b_turned: bool,
    beta: float,
    c: Number,
) -> None:
    """c ← alpha · a · b + beta · c, rows one after another in memory: a (m,k), or (k,m) where turned; b (k,n) or (n,k);
    c (m,n).

    a, b, c: (address, elements from row to row). room: arrays that arguments stand in, which BLAS takes by address.
    """
    letters, whole, real = room
    letters[0], letters[1] = _T if b_turned else _N, _T if a_turned else _N
    whole[0], whole[1], whole[2], whole[3], whole[4], whole[5] = n, m, k, b[1], a[1], c[1]
    real[0], real[1] = alpha, beta
    at, size, into, step = letters.ctypes.data, whole.ctypes.data, real.ctypes.data, real.itemsize
    if step == 4:  # BLAS counts columns first: there c turned is b turned times a turned
        _single(
            at, at + 1, size, size + 4, size + 8, into, b[0], size + 12, a[0], size + 16, into + step, c[0], size + 20
        )
    else:
        _double(
            at, at + 1, size, size + 4, size + 8, into, b[0], size + 12, a[0], size + 16, into + step, c[0], size + 20
        )


@quick
def _top(x: Floats, powers: Number) -> Number:
    """The largest. In single precision as whole numbers of the same order, whose largest is found many at a time."""
    if x.itemsize == 8:
        highest = x[0]
        for j in range(len(x)):
            highest = max(highest, x[j])
        return highest
    bits, floats = powers
    keys, most = x.view(np.int32), _LOWEST
    for j in range(len(keys)):  # numba would widen all of it to 64 bits
        most = np.int32(max(most, np.int32(keys[j] ^ np.int32(np.int32(keys[j] >> _SIGN) & _REST))))
    bits[0] = most ^ ((most >> _SIGN) & _REST)
    return floats[0]


@quick
def _powers_of_two(x: Floats, top: Number, powers: Number) -> Number:
    """x ← 2^(x − top), none above top → their sum. In single precision to 2 units in the last place: 2^n · 2^f."""
    total = top * 0
    if x.itemsize == 8:
        for j in range(len(x)):
            x[j] = np.exp2(x[j] - top)
            total += x[j]
        return total
    bits, scales = powers
    for j in range(len(x)):
        y = x[j] - top
        y = y if y > _LEAST else _LEAST
        n = np.int32(y - _HALF)
        f = y - np.float32(n)
        p = _POWERS[0] * f + _POWERS[1]
        p = p * f + _POWERS[2]
        p = p * f + _POWERS[3]
        p = p * f + _POWERS[4]
        x[j] = p * f + _POWERS[5]
        bits[j] = (n + _BIAS) << _MANTISSA
    for j in range(len(x)):
        x[j] *= scales[j]
        total += x[j]
    return total


@quick
def _softmax(x: Floats, low: int, high: int, band: int, end: int, powers: Number) -> None:
    """The softmax, to the base 2, of one row of scores over low ≤ j < high and band ≤ j < end; zero elsewhere."""
    near, far = x[low:high], x[band:end]
    top = _top(near, powers)
    if len(far):
        top = max(top, _top(far, powers))
    total = _powers_of_two(near, top, powers) + _powers_of_two(far, top, powers)
    share = _ONE / total  # a whole number would widen the row to double precision
    for j in range(len(near)):
        near[j] *= share
    for j in range(len(far)):
        far[j] *= share
    x[:low] = 0
    x[high:band] = 0
    x[end:] = 0


@quick
def _softmaxes(x: Floats, line: int, band: int, back: int, window: int, seen: Number, powers: Number) -> None:
    """The same for each row (line,) of a block: row i sees i + back − window < j ≤ i + back, and band ≤ j < band +
    seen[i]."""
    for i in range(len(seen)):
        _softmax(
            x[i * line : (i + 1) * line], max(0, i + back - window + 1), i + back + 1, band, band + seen[i], powers
        )


@quick
def _slope(x: Floats, shares: Floats) -> None:
    """The gradient of one row's softmax: x ← shares · (x − Σ shares · x)."""
    common = x[0] * 0
    for j in range(len(x)):
        common += x[j] * shares[j]
    for j in range(len(x)):
        x[j] = shares[j] * (x[j] - common)


@quick
def _slopes(x: Floats, shares: Floats, line: int) -> None:
    """The same for each row (line,) of a block."""
    for begin in range(0, len(x), line):
        _slope(x[begin : begin + line], shares[begin : begin + line])


@compiled
def _rooms(like: Floats) -> Number:
    """What `_product` asks for, of the type of `like`."""
    return np.empty(2, np.uint8), np.empty(6, np.int32), np.empty(2, like.dtype)


@compiled
def _at(x: Number, row: int, size: int) -> Number:
    """Where row `row` of x begins, as `_product` takes it; size: bytes of an element."""
    return x[0] + row * x[1] * size, x[1]


@compiled
def _shares(
    room: Number,
    x: Floats,
    powers: Number,
    q: Number,
    k: Number,
    far_k: Number,
    begin: int,
    rows: int,
    back: int,
    few: int,
    width: int,
    window: int,
    scale: float,
    seen: Number,
) -> None:
    """x ← the softmax of a block's scores (rows, back + rows + few), which stand side by side."""
    size, band, line = x.itemsize, back + rows, back + rows + few
    near, far = (x.ctypes.data, line), (x.ctypes.data + band * size, line)
    asked = _at(q, begin, size)
    _product(room, rows, band, width, scale * _LOG2_E, asked, False, _at(k, begin - back, size), True, 0.0, near)
    if few:
        _product(room, rows, few, width, scale * _LOG2_E, asked, False, far_k, True, 0.0, far)
    _softmaxes(x, line, band, back, window, seen[begin : begin + rows], powers)


@compiled
def forward(
    like: Floats,
    q: Number,
    k: Number,
    v: Number,
    far_k: Number,
    far_v: Number,
    out: Number,
    seen: Number,
    length: int,
    width: int,
    window: int,
    block: int,
    scale: float,
) -> None:
    """One head: out (T,E) ← softmax(scale · q · [k in the band, far_k]ᵀ) · [v, far_v]; each (address, elements from row
    to row).

    seen (T,): how many extras each query sees, never falling; like: an array of the type of all.
    """
    most = block * (window + block + seen[length - 1])
    x, bits, room = np.empty(most, like.dtype), np.empty(most, np.int32), _rooms(like)
    powers, size = (bits, bits.view(np.float32)), like.itemsize
    for begin in range(0, length, block):
        rows, back = min(block, length - begin), min(begin, window)
        few, band = seen[begin + rows - 1], back + rows
        _shares(room, x, powers, q, k, far_k, begin, rows, back, few, width, window, scale, seen)
        near, far, y = (x.ctypes.data, band + few), (x.ctypes.data + band * size, band + few), _at(out, begin, size)
        _product(room, rows, width, band, 1.0, near, False, _at(v, begin - back, size), False, 0.0, y)
        if few:
            _product(room, rows, width, few, 1.0, far, False, far_v, False, 1.0, y)


@compiled
def backward(
    like: Floats,
    given: Number,
    q: Number,
    k: Number,
    v: Number,
    far_k: Number,
    far_v: Number,
    dq: Number,
    dk: Number,
    dv: Number,
    d_far_k: Number,
    d_far_v: Number,
    seen: Number,
    length: int,
    width: int,
    window: int,
    block: int,
    scale: float,
) -> None:
    """One head: from the gradient `given` of `out`, dq, dk and dv are written, those of the extras added to; the rest
    as in `forward`."""
    most = block * (window + block + seen[length - 1])
    x, z, bits, room = np.empty(most, like.dtype), np.empty(most, like.dtype), np.empty(most, np.int32), _rooms(like)
    powers, size = (bits, bits.view(np.float32)), like.itemsize
    for begin in range(0, length, block):
        rows, back = min(block, length - begin), min(begin, window)
        few, band, first = seen[begin + rows - 1], back + rows, begin - back
        line = band + few
        _shares(room, x, powers, q, k, far_k, begin, rows, back, few, width, window, scale, seen)
        near, far, asked, g = (
            (x.ctypes.data, line),
            (x.ctypes.data + band * size, line),
            _at(q, begin, size),
            _at(given, begin, size),
        )
        grad, beyond = (z.ctypes.data, line), (z.ctypes.data + band * size, line)
        for grads in (dk, dv):  # a product over nothing writes zeros, where these rows are met first
            _product(room, rows, width, 0, 0.0, g, False, g, False, 0.0, _at(grads, begin, size))
        _product(room, band, width, rows, 1.0, near, True, g, False, 1.0, _at(dv, first, size))
        _product(room, rows, band, width, 1.0, g, False, _at(v, first, size), True, 0.0, grad)
        if few:
            _product(room, few, width, rows, 1.0, far, True, g, False, 1.0, d_far_v)
            _product(room, rows, few, width, 1.0, g, False, far_v, True, 0.0, beyond)
        _slopes(z[: rows * line], x, line)
        _product(room, band, width, rows, scale, grad, True, asked, False, 1.0, _at(dk, first, size))
        _product(room, rows, width, band, scale, grad, False, _at(k, first, size), False, 0.0, _at(dq, begin, size))
        if few:
            _product(room, few, width, rows, scale, beyond, True, asked, False, 1.0, d_far_k)
            _product(room, rows, width, few, scale, beyond, False, far_k, False, 1.0, _at(dq, begin, size))
