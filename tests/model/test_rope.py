"""Rotations keep lengths."""

from __future__ import annotations

import torch

from lmforge.model.rope import rotate


def test_rotation_keeps_length_and_turns_by_the_angle() -> None:
    x = torch.randn(1, 3, 2, 4)
    turn = torch.polar(torch.ones(3, 2), torch.full((3, 2), torch.pi / 2))
    y = rotate(x, turn)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    assert torch.allclose(y[..., 0], -x[..., 1], atol=1e-6)
    assert torch.allclose(y[..., 1], x[..., 0], atol=1e-6)
