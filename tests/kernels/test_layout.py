"""Structs are as large as C has them."""

from __future__ import annotations

import ctypes

import pytest

from lmforge.kernels.build import library
from lmforge.kernels.layout import STRUCTS


def test_structs_are_as_c_has_them() -> None:
    here = library()
    if here is None:
        pytest.skip("no kernels here")
    here.lmforge_layout.restype = ctypes.c_int64
    for number, struct in enumerate(STRUCTS):
        assert here.lmforge_layout(ctypes.c_int64(number)) == ctypes.sizeof(struct), struct.__name__
