"""Without its zeros a matrix gives the same bits, for all instructions; it is taken where it is the faster one."""

from __future__ import annotations

import pytest
import torch

from lmforge.kernels import build, matrix, zeros
from tests.kernels.test_matrix import instructions

__all__ = ["instructions"]


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 1.0])
def test_results_have_the_same_bits(kept: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, width in ((1, 1), (19, 40), (35, 64), (70, 147), (131, 200)):
        there = torch.rand(rows, width, generator=generator) < kept
        weight, bias = torch.randn(rows, width, generator=generator) * there, torch.randn(rows, generator=generator)
        floats = matrix.floats(weight, bias)
        x = torch.randn(9, width, generator=generator)
        for tokens in (1, 2, 3, 4, 5, 9):
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert torch.equal(zeros.sparse(floats, weight)(x[:tokens]), floats(x[:tokens]))


def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(32, 64).masked_fill(torch.rand(32, 64) < 0.8, 0.0)
    whole = matrix.floats(weight)
    monkeypatch.setattr(zeros, "_seconds", lambda packed: 1.0 if packed is whole else 0.5)
    assert zeros.without_zeros(whole, weight).struct.kind == zeros.SPARSE
    monkeypatch.setattr(zeros, "_seconds", lambda packed: 1.0)
    assert zeros.without_zeros(whole, weight) is whole
    dense = torch.randn(32, 64)
    monkeypatch.setattr(zeros, "_seconds", lambda packed: pytest.fail("nothing to measure"))
    held = matrix.floats(dense)
    assert zeros.without_zeros(held, dense) is held
    assert build.library() is not None
