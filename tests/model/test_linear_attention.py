"""Linear attention equals its plain form."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model import linear_attention as module
from lmforge.model.linear_attention import Linear, linear_attention
from lmforge.model.rope import rotations
from tests.model import reference
from tests.model.test_attention import inputs
from tests.model.test_lsh import assert_close_with_gradients, shape


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.sampled_from(["elu", "learned"]), st.integers(1, 2), st.booleans(), st.integers(0, 99))
def test_linear_equals_its_plain_form(length: int, features: str, groups: int, turned: bool, seed: int) -> None:
    config = shape(attention=("linear",), feature_map=features, d_model=16 * groups, heads=2 * groups)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        mixer = Linear(config).to(dtype)
        turns = (
            rotations(config, 200)[:length].to(torch.complex128 if dtype == torch.float64 else torch.complex64)
            if turned
            else None
        )
        x = inputs(2, length, 2 * groups, 2, 8, dtype, seed)
        with mock.patch.object(module, "PIECE", 2):  # so that these texts, too, are worked on in pieces
            assert_close_with_gradients(
                mixer(*x, turns), reference.linear(mixer, *x, turns), [*x, *mixer.parameters()], bound
            )


def test_the_state_carries_gradients_from_one_part_of_a_text_to_the_next() -> None:
    q, k, v = (torch.rand(2, 3, 150, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weights = torch.randn(2, 3, 150, 8, dtype=torch.float64)
    whole, state = linear_attention(q, k, v)
    first, carried = linear_attention(q[:, :, :70], k[:, :, :70], v[:, :, :70])
    second, same = linear_attention(q[:, :, 70:], k[:, :, 70:], v[:, :, 70:], carried)
    assert_close_with_gradients(
        (torch.cat((first, second), 2) * weights).sum() + same.sum(),
        (whole * weights).sum() + state.sum(),
        [q, k, v],
        1e-10,
    )


def test_the_state_is_as_large_whatever_the_length() -> None:
    mixer, x = Linear(shape(attention=("linear",))), torch.zeros(1, 1, 2, 8)
    assert mixer.new_cache(x, x, 30_000, x.dtype).nbytes == mixer.new_cache(x, x, 10, x.dtype).nbytes == 4 * 2 * 8 * 9
