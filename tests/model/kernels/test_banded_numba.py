"""The compiled loops of the band: powers of two, the softmax of a row, products; several threads; the same bits
whatever their number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmforge.model.kernels import banded_numba
from lmforge.model.kernels.banded import banded_attention


def rooms(length: int) -> tuple[np.ndarray, np.ndarray]:
    bits = np.empty(length, np.int32)
    return bits, bits.view(np.float32)


def test_powers_of_two_are_numpys() -> None:
    x = np.linspace(-124, 0, 20_001, dtype=np.float32)
    powers = x.copy()
    total = banded_numba._powers_of_two(powers, np.float32(0), rooms(len(x)))
    exact = np.exp2(x.astype(np.float64))
    np.testing.assert_allclose(powers, exact, rtol=3e-7)
    assert total == pytest.approx(exact.sum(), rel=1e-6)


@pytest.mark.parametrize(
    "values", [[3.0], [-2.0, -1.0], [-1e30, 1e30, 5.0], [-0.0, 0.0], [-5.0] * 17 + [-4.5], list(range(-40, 33))]
)
def test_the_largest_is_found_whatever_the_signs(values: list[float]) -> None:
    for dtype in (np.float32, np.float64):
        assert banded_numba._top(np.array(values, dtype), rooms(len(values))) == np.array(values, dtype).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rows_softmax_leaves_nothing_outside(dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=50).astype(dtype) * 10
    low, high, band, end = 3, 20, 24, 41
    seen = np.r_[x[low:high], x[band:end]].astype(np.float64)
    shares = np.exp2(seen - seen.max())
    banded_numba._softmax(x, low, high, band, end, rooms(50))
    np.testing.assert_allclose(np.r_[x[low:high], x[band:end]], shares / shares.sum(), rtol=1e-5)
    assert not x[:low].any()
    assert not x[high:band].any()
    assert not x[end:].any()


def test_threads_change_no_bit() -> None:
    q, k, v, extra_k, extra_v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (300, 300, 300, 5, 5))
    seen, results = torch.tensor([64, 70, 128, 200, 299]), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = banded_attention(q, k, v, 64, extra_k, extra_v, seen)
            results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v, extra_k, extra_v))])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
