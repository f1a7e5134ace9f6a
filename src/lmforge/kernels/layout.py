"""The structs of `native/`, as C has them."""

from __future__ import annotations

import ctypes

_INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
FLOATS, CODES, COLUMNS, PAIR, FLOAT_COLUMNS, CHOSEN, SPARSE = 1, 2, 3, 4, 5, 6, 7  # kinds of matrix
CONSTANT, ZEROS, LEAST = 0, 1, 2  # what a code of 0 stands for
ACTIVATIONS = ("relu", "relu2", "swiglu", "geglu", "gelu_tanh", "gelu")


class CMatrix(ctypes.Structure):
    """`Matrix` of native/matrix.h."""

    _fields_ = (
        *((name, _INT) for name in ("kind", "rows", "cols", "group", "groups", "base", "planes")),
        *((name, _INT) for name in ("wide_scale", "offsets", "zero", "padded", "whole_row", "top")),
        *((name, _FLOAT) for name in ("clip", "threshold")),
        *((name, _POINTER) for name in ("data", "scale", "channel", "bias", "masks", "starts")),
        *((name, _POINTER) for name in ("first", "second")),
    )


class CNorm(ctypes.Structure):
    """`Norm` of native/step.h."""

    _fields_ = (("gain", _POINTER), ("bias", _POINTER), ("layernorm", _INT), ("eps", _FLOAT))


class CLayer(ctypes.Structure):
    """`Layer` of native/step.h."""

    _fields_ = (
        *((f"{name}_norm", CNorm) for name in ("attention", "attention_out", "ff", "ff_out", "q", "k")),
        *((name, CMatrix) for name in ("qkv", "out", "up", "down")),
        ("rotations", _POINTER),
        *((name, _INT) for name in ("heads", "kv_heads", "units")),
    )


class CNetwork(ctypes.Structure):
    """`Network` of native/step.h."""

    _fields_ = (
        *((name, _INT) for name in ("layers", "width", "head_width", "vocabulary", "activation", "parallel")),
        ("whole_norm", _INT),
        ("query_scale", _FLOAT),
        ("norm", CNorm),
        ("head", CMatrix),
        ("layer", _POINTER),
    )


class CCache(ctypes.Structure):
    """`Cache` of native/attention.h."""

    _fields_ = (
        ("store", _POINTER),
        ("scales", _POINTER),
        *((name, _INT) for name in ("rows", "slots", "window", "bytes")),
    )


STRUCTS = (CMatrix, CNorm, CLayer, CNetwork, CCache)  # in the order of `lmforge_layout`
