"""Matrices laid out for the kernels, and their products.

    weights ─`floats`, `codes`, `columns`, `pair`─▶ Packed ─(x (…,I))─▶ y (…,O)

Codes: w = scale · (code − zero), or scale · code + least, a scale for each group of neighbours in a row. Activations
are rounded to 8 bits on the way in: a scale for each of these groups, or one a token (`whole_row`; within a fixed
`clip` where it is known). Sums of products are exact integers. Each number of y is then made from its groups in their
order, so that it has the same bits in any batch and with any number of threads (`reference`).
"""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.kernels.build import library
from lmforge.kernels.layout import (
    CHOSEN,
    CODES,
    COLUMNS,
    CONSTANT,
    FLOAT_COLUMNS,
    FLOATS,
    LEAST,
    PAIR,
    SPARSE,
    ZEROS,
    CMatrix,
)

ROWS = 16  # of a panel
LINE = 64  # rows of columns are filled up to a multiple
WIDTHS = {3: (2, 1), 4: (4, 0), 5: (4, 1), 6: (4, 2), 8: (8, 0)}  # bits of a code: bits side by side, planes of one bit
MOST_COLUMNS = 32_768  # of one sum of products that has to fit 32 bits


class Packed:
    """A matrix (O,I) as the kernels take it. `struct` points into the tensors that are kept here."""

    def __init__(self, kind: int, rows: int, cols: int, **numbers: Any) -> None:
        self.rows, self.cols = rows, cols
        self.struct = CMatrix(kind=kind, rows=rows, cols=cols, padded=cols, groups=1, threshold=-1.0, **numbers)
        self._kept: dict[str, Any] = {}

    def keep(self, name: str, tensor: Tensor | None) -> Packed:
        """Have a field of the struct point to a tensor, which is kept as long as this is."""
        if tensor is not None:
            tensor = tensor.detach().contiguous()
            self._kept[name] = tensor
            setattr(self.struct, name, tensor.data_ptr())
        return self

    def hold(self, name: str, part: Packed) -> Packed:
        """Have a field of the struct point to another matrix."""
        self._kept[name] = part
        setattr(self.struct, name, ctypes.addressof(part.struct))
        return self

    def __deepcopy__(self, _: Any) -> Packed:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        return _again, (bytes(self.struct), self._kept)

    @property
    def bias(self) -> Tensor | None:
        """(O,), where there is one."""
        return self._kept.get("bias")

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        own = sum(each.nbytes for each in self._kept.values() if isinstance(each, Tensor))
        return own + sum(each.nbytes for each in self._kept.values() if isinstance(each, Packed))

    @property
    def whole(self) -> Packed:
        """The matrix with its zeros, where it is one without."""
        whole: Packed = self._kept["first"] if self.struct.kind == SPARSE else self
        return whole

    def tensors(self) -> Iterator[Tensor]:
        """All that it points to."""
        for each in self._kept.values():
            yield from each.tensors() if isinstance(each, Packed) else (each,)

    @property
    def data(self) -> Tensor:
        """The bytes of the matrix."""
        data: Tensor = self._kept["data"]
        return data

    def with_bias(self, bias: Tensor | None) -> Packed:
        """The same matrix, with this added to what it gives."""
        result = copy.copy(self)
        result.struct, result._kept = CMatrix.from_buffer_copy(self.struct), dict(self._kept)
        return result.keep("bias", bias)

    def thinned(self, threshold: float = -1.0, top: int = 0) -> Packed:
        """The same matrix for inputs of which those up to `threshold`, or all but the `top` largest, count as 0."""
        result = copy.copy(self)
        result.struct = CMatrix.from_buffer_copy(self.struct)
        result.struct.threshold, result.struct.top = (-1.0, top) if top else (threshold, 0)
        return result

    def __call__(self, x: Tensor) -> Tensor:
        """x (…,I) fp32 → (…,O) fp32."""
        kernels = library()
        assert kernels is not None
        x = x.detach().contiguous()
        y = torch.empty(*x.shape[:-1], self.rows)
        tokens = math.prod(x.shape[:-1])
        kernels.lmforge_linear(
            ctypes.byref(self.struct),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(tokens),
            ctypes.c_void_p(y.data_ptr()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return y

    def rows_of(self, index: Tensor) -> Tensor:
        """Rows of a matrix of codes, as floats: index (…) → (…,I)."""
        kernels = library()
        assert kernels is not None
        index = index.contiguous().long()
        y = torch.empty(*index.shape, self.cols)
        kernels.lmforge_rows(
            ctypes.byref(self.struct),
            ctypes.c_void_p(index.data_ptr()),
            ctypes.c_int64(index.numel()),
            ctypes.c_void_p(y.data_ptr()),
        )
        return y

    def codes(self) -> Tensor:
        """The codes (O,I) uint8 of a matrix of codes, taken apart again."""
        return unpanelled(self)


def _again(struct: bytes, kept: dict[str, Any]) -> Packed:
    """A matrix from another process: its pointers mean nothing here."""
    old = CMatrix.from_buffer_copy(struct)
    packed = Packed(old.kind, old.rows, old.cols)
    packed.struct = old
    for name, part in kept.items():
        packed.hold(name, part) if isinstance(part, Packed) else packed.keep(name, part)
    return packed


def floats(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """A matrix of floats, where torch has it."""
    rows, cols = weight.shape
    return Packed(FLOATS, rows, cols).keep("data", weight).keep("bias", bias)


def float_columns(weight: Tensor, bias: Tensor | None = None) -> Packed:
    """A matrix of floats whose columns are not touched where x is 0; a copy, column after column."""
    rows, cols = weight.shape
    return Packed(FLOAT_COLUMNS, rows, cols).keep("data", weight.t()).keep("bias", bias)


def columns(weight: Tensor, scale: Tensor, whole: Packed, clip: float = 0.0) -> Packed:
    """Int8 (O,I) with a scale for each row (O,), whose columns are not touched where x rounds to 0. `whole`: the same
    matrix of `codes`, for batches in which few columns are left out."""
    rows, cols = weight.shape
    shifted = F.pad((weight.t().short() + 128).to(torch.uint8), (0, -rows % LINE), value=128)
    packed = Packed(COLUMNS, rows, cols, zero=128, whole_row=1, clip=clip, group=whole.struct.padded)
    packed.struct.padded = shifted.shape[1]
    packed.hold("first", whole).keep("bias", whole.bias)
    return packed.keep("data", shifted).keep("scale", scale.float())


def pair(first: Packed, second: Packed) -> Packed:
    """Two thin matrices, one after the other, in one call."""
    whole = Packed(PAIR, second.rows, first.cols)
    return whole.hold("first", first).hold("second", second)


def chosen(whole: Packed, predictor: Packed, weight: Tensor | None = None, scale: Tensor | None = None) -> Packed:
    """The rows of `whole` (O,I) of units that `predictor` (a pair, I → units) gives more than 0; the others give 0. A
    unit has one row, or two, units apart. `weight` int8 (O,I), `scale` (O,): the same where `whole` is of codes of 8
    bits; without them those are multiplied whole."""
    packed = Packed(CHOSEN, whole.rows, whole.cols, group=predictor.rows, whole_row=1)
    packed.hold("first", whole).hold("second", predictor)
    if weight is None or scale is None:
        return packed
    shifted = F.pad((weight.short() + 128).to(torch.uint8), (0, -weight.shape[1] % LINE), value=128)
    packed.struct.padded = shifted.shape[1]
    return packed.keep("data", shifted).keep("scale", scale.float())


def group_of(width: int, group: int) -> int | None:
    """The group as the kernels take it: a whole row is filled up to 16; None: they cannot take groups of that size."""
    if group >= width:
        return -(-width // ROWS) * ROWS
    return group if group % ROWS == 0 else None


def codes(
    code: Tensor,
    bits: int,
    group: int,
    scale: Tensor,
    zero: Tensor | int = 0,
    least: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    channel: Tensor | None = None,
    whole_row: bool = False,
    clip: float = 0.0,
) -> Packed:
    """Codes (O,I) uint8 below 2^bits; scale and, where they are tensors, zero (uint8) and least (O,G). Scales of fp16
    stay so, others are fp32. `channel` (I,): x is divided by it first."""
    (rows, cols), (base, planes) = code.shape, WIDTHS[bits]
    size = group_of(cols, group)
    assert size is not None
    groups = scale.shape[1]
    offsets = LEAST if least is not None else ZEROS if isinstance(zero, Tensor) else CONSTANT
    wide = scale.dtype != torch.float16
    parts = [by_panel(scale.float() if wide else scale)]
    if least is not None:
        parts.append(by_panel(least.half()))
    elif isinstance(zero, Tensor):
        parts.append(by_panel(zero))
    parts.append(_panels(F.pad(code, (0, size * groups - cols, 0, -rows % ROWS)), groups, base, planes))
    numbers = {"group": size, "base": base, "planes": planes, "wide_scale": wide, "offsets": offsets}
    packed = Packed(
        CODES, rows, cols, **numbers, whole_row=whole_row, clip=clip, zero=0 if isinstance(zero, Tensor) else zero
    )
    packed.struct.groups, packed.struct.padded = groups, groups * size
    packed.keep("data", torch.cat(parts, 2)).keep("bias", bias)
    return packed.keep("channel", None if channel is None else channel.float())


def by_panel(each: Tensor) -> Tensor:
    """Numbers of groups (O,G) → their bytes by panel and group (P,G,16·size)."""
    filled = F.pad(each, (0, 0, 0, -len(each) % ROWS))
    turned: Tensor = filled.view(-1, ROWS, each.shape[1]).transpose(1, 2).contiguous().view(torch.uint8)
    return turned


def _panels(code: Tensor, groups: int, base: int, planes: int) -> Tensor:
    """Codes (P·16, G·group) → their bytes (P,G,…), as native/matrix.h says."""
    quads = code.view(-1, ROWS, groups, code.shape[1] // groups // ROWS, 4, 4).permute(0, 2, 3, 4, 1, 5).flatten(4)
    per = 8 // base
    low = (quads & (2**base - 1)).unflatten(3, (-1, per))  # (P,G,units,4/per,per,64)
    shifts = base * torch.arange(per, dtype=torch.uint8)
    sides = (low << shifts[:, None]).sum(4, dtype=torch.uint8).flatten(3)
    bits = torch.arange(8, dtype=torch.uint8)
    extra = [
        (((quads >> (base + plane)) & 1).unflatten(4, (8, 8)) << bits).sum(5, dtype=torch.uint8).flatten(3)
        for plane in range(planes)
    ]
    return torch.cat((sides, *extra), 3).flatten(2)


def unpanelled(packed: Packed) -> Tensor:
    """What `codes` was given: (O,I) uint8."""
    s = packed.struct
    unit, units, per = 32 * (s.base + s.planes), s.group // ROWS, 8 // s.base
    body = packed.data[:, :, packed.data.shape[2] - units * unit :].unflatten(2, (units, unit))
    sides = body[..., : 32 * s.base].unflatten(3, (-1, 1, 64))
    shifts = s.base * torch.arange(per, dtype=torch.uint8)
    quads = ((sides >> shifts[:, None]) & (2**s.base - 1)).flatten(3, 4)  # (P,G,units,4,64)
    bits = torch.arange(8, dtype=torch.uint8)
    for plane in range(s.planes):
        first = 32 * (s.base + plane)
        there = body[..., first : first + 32].unflatten(3, (4, 8, 1))
        quads = quads | (((there >> bits) & 1).flatten(4) << (s.base + plane))
    code: Tensor = quads.unflatten(4, (ROWS, 4)).permute(0, 4, 1, 2, 3, 5).flatten(2).flatten(0, 1)
    code = code[: packed.rows, : packed.cols]
    return code.contiguous()


def groups_of(packed: Packed) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros or least values of a matrix of codes, (O,G) each, taken apart again."""
    s = packed.struct
    first = ROWS * (4 if s.wide_scale else 2)

    def apart(part: Tensor, kind: torch.dtype) -> Tensor:
        numbers = part.contiguous().view(kind)
        return numbers.transpose(1, 2).flatten(0, 1)[: packed.rows].contiguous()

    scale = apart(packed.data[:, :, :first], torch.float32 if s.wide_scale else torch.float16)
    if s.offsets == CONSTANT:
        return scale, None
    size, kind = (ROWS, torch.uint8) if s.offsets == ZEROS else (2 * ROWS, torch.float16)
    return scale, apart(packed.data[:, :, first : first + size], kind)
