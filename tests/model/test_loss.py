"""The chunked loss against the whole one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model.loss import linear_cross_entropy


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), chunk=st.integers(1, 25), seed=st.integers(0, 99))
def test_chunked_loss_equals_the_whole(count: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(count, 6, generator=generator), torch.randn(9, 6, generator=generator)
    targets = torch.randint(-1, 9, (count,), generator=generator)
    results = []
    for function in (
        lambda h, w: linear_cross_entropy(h, w, targets, chunk),
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.T, targets, ignore_index=-1, reduction="sum"),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(h, w)
        loss.backward()
        results.append((loss.detach(), h.grad, w.grad))
    for ours, reference in zip(*results, strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5)


def test_tokens_that_do_not_count_change_nothing() -> None:
    """As if they were not there: loss and gradients of the others alone; none at all is a loss of nought."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(30, 8, generator=generator, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (30,), generator=generator)
    targets[::3] = -1
    linear_cross_entropy(hidden, weight, targets, 7).backward()
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, ignore_index=-1, reduction="sum"),
        (hidden, weight),
    )
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad, expected[0], atol=1e-5)
    assert torch.allclose(weight.grad, expected[1], atol=1e-5)
    assert not hidden.grad[::3].any()
    assert not linear_cross_entropy(hidden, weight, torch.full((30,), -1), 7).detach()


def test_under_autocast_the_loss_multiplies_in_half_precision() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (40,))
    exact = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, 16), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, 16)
    ours = torch.autograd.grad(loss, (hidden, weight))
    assert loss.dtype == torch.float32
    for near, far in zip(ours, exact, strict=True):
        assert near.dtype == torch.float32
        assert 0 < (near - far).abs().max() < 0.02 * far.abs().max()
