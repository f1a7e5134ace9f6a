"""The reference is itself what the formula says, and finds a library that multiplies wrongly."""

from __future__ import annotations

import ctypes

import pytest
import torch

from lmforge.kernels import reference
from lmforge.kernels.build import library


def test_the_product_is_that_of_dense_weights() -> None:
    code = torch.randint(16, (6, 50), dtype=torch.uint8)
    scale, least = torch.rand(6, 4).half(), torch.randn(6, 4).half()
    dense = code * scale.float().repeat_interleave(16, 1)[:, :50] + least.float().repeat_interleave(16, 1)[:, :50]
    x = torch.randn(3, 50)
    y = reference.product(x, code, 16, scale, least=least)
    assert float((y - x @ dense.t()).norm() / (x @ dense.t()).norm()) < 0.02
    codes, scales = reference.rounded(x, 16)
    whole = (codes * scales[..., None]).flatten(1)[:, :50]
    assert (whole - x).abs().max() <= scales.max() / 2 * 1.001
    fixed, scales = reference.rounded(x * 10, 16, clip=1.0)
    assert fixed.abs().max() == 127
    assert torch.equal(scales, torch.full_like(scales, 1 / 127))


def test_a_library_that_is_wrong_is_found() -> None:
    here = library()
    if here is None:
        pytest.skip("no kernels here")
    assert reference.agrees(here)

    class Wrong:
        def lmforge_linear(
            self, struct: object, x: object, tokens: object, y: ctypes.c_void_p, threads: object
        ) -> None:
            here.lmforge_linear(struct, x, tokens, y, threads)
            first = ctypes.cast(y, ctypes.POINTER(ctypes.c_float))
            first[0] += 1.0

    assert not reference.agrees(Wrong())  # type: ignore[arg-type]
