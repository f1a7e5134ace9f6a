"""Error feedback leaves less error of outputs than rounding to the nearest, and the masked weights alone."""

from __future__ import annotations

import pytest
import torch

from lmforge.compress.feedback import inverse_factor, output_error, round_with_feedback
from lmforge.compress.groups import round_groups


def correlated(inputs: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 8, generator=generator) @ torch.randn(8, inputs, generator=generator)
    x = x + 0.3 * torch.randn(500, inputs, generator=generator)
    return x.t() @ x


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("width", [64, 200])
def test_less_error_than_the_nearest(bits: int, width: int) -> None:
    weight, gram = torch.randn(24, width, generator=torch.Generator().manual_seed(bits)), correlated(width)
    nearest = output_error(round_groups(weight, bits, 16).dense(16) - weight, gram)
    feedback = output_error(round_with_feedback(weight, gram, bits, 16).dense(16) - weight, gram)
    assert feedback < 0.7 * nearest


def test_what_the_factor_is_a_factor_of() -> None:
    gram = correlated(20)
    upper = inverse_factor(gram, 0.01)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(20)
    assert torch.allclose(upper.t() @ upper @ damped, torch.eye(20), atol=1e-3)


def test_dead_inputs_masks_and_no_calibration() -> None:
    weight, gram = torch.randn(8, 40), correlated(40)
    gram[5], gram[:, 5] = 0, 0
    mask = torch.rand(8, 40) > 0.5
    rounded = round_with_feedback(weight * mask, gram, 4, 16, mask=mask).dense(16)
    assert not rounded[~mask].any()
    assert rounded.isfinite().all()
    nearest, without = round_groups(weight, 4, 16), round_with_feedback(weight, None, 4, 16)
    assert all(torch.equal(a, b) for a, b in zip(nearest, without, strict=True))


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(8, 32)
    assert torch.equal(round_with_feedback(weight, torch.eye(32), 4, 32).codes, round_groups(weight, 4, 32).codes)
