"""Rotations keep lengths; how they are stretched, by the published formulas written out."""

from __future__ import annotations

import math

import torch

from lmforge.model.config import GPTConfig
from lmforge.model.rope import rotate, rotations

SHAPE = {"vocab_size": 9, "context": 64, "layers": 1, "d_model": 32, "heads": 2, "kv_heads": 2, "d_ff": 8}


def test_rotation_keeps_length_and_turns_by_the_angle() -> None:
    x = torch.randn(1, 3, 2, 4)
    turn = torch.polar(torch.ones(3, 2), torch.full((3, 2), torch.pi / 2))
    y = rotate(x, turn)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    assert torch.allclose(y[..., 0], -x[..., 1], atol=1e-6)
    assert torch.allclose(y[..., 1], x[..., 0], atol=1e-6)


def angles(local: bool = False, **changes: object) -> torch.Tensor:
    """θ of each pair (E/2,)."""
    return rotations(GPTConfig(**{**SHAPE, **changes}), 2, local)[1].angle()  # type: ignore[arg-type]


def test_llama3_leaves_fast_pairs_stretches_slow_ones_and_goes_over_between() -> None:
    """Wavelengths as Llama 3.1's own code has them."""
    plain = angles(rope_base=1000.0)
    scaled = angles(
        rope_base=1000.0, rope_scaling="llama3", rope_factor=8.0, rope_trained=40, rope_low=1.0, rope_high=4.0
    )
    kinds = set()
    for theta, ours in zip(plain.tolist(), scaled.tolist(), strict=True):
        length = 2 * math.pi / theta
        if length < 40 / 4:
            kinds.add("fast")
            expected = theta
        elif length > 40 / 1:
            kinds.add("slow")
            expected = theta / 8
        else:
            kinds.add("between")
            smooth = (40 / length - 1) / (4 - 1)
            expected = (1 - smooth) * theta / 8 + smooth * theta
        assert math.isclose(ours, expected, rel_tol=1e-5)
    assert kinds == {"fast", "slow", "between"}


def test_channels_that_do_not_turn_come_out_as_they_went_in() -> None:
    x = torch.randn(1, 5, 2, 16)
    y = rotate(x, rotations(GPTConfig(**SHAPE, rotary_fraction=0.25), 5))  # type: ignore[arg-type]
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert not torch.allclose(y[:, 1:, :, :4], x[:, 1:, :, :4])
    assert torch.allclose(angles(rotary_fraction=0.25)[:2], torch.tensor([1.0, 10_000.0**-0.5]))


def test_window_layers_turn_by_their_own_base_unstretched() -> None:
    changes = {"rope_local_base": 50.0, "rope_scaling": "linear", "rope_factor": 4.0}
    assert torch.allclose(angles(True, **changes), angles(rope_base=50.0))
    assert torch.allclose(angles(**changes), angles() / 4)


def test_divisors_and_magnitude_are_taken_as_they_are() -> None:
    table = rotations(GPTConfig(**SHAPE, rope_divisors=(1, 2, 3, 4, 5, 6, 7, 8), rope_magnitude=1.5), 4)  # type: ignore[arg-type]
    assert torch.allclose(table[1].angle(), angles() / torch.arange(1, 9))
    assert torch.allclose(table.abs(), torch.full((4, 8), 1.5))
