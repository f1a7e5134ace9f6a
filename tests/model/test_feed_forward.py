"""Hand-written gradients of activations against numerical ones."""

from __future__ import annotations

import torch

from lmforge.model.feed_forward import relu_squared


def test_relu_squared_gradient() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(relu_squared, (x,))
    assert torch.equal(relu_squared(torch.tensor([-2.0, 3.0])), torch.tensor([0.0, 9.0]))
