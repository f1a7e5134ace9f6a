"""Groups of few bits: packed without loss, zeros kept, no weight further from its code than half a step."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.compress.groups import pack_codes, packed_width, round_groups, spread, unpack_codes

BITS = st.sampled_from([3, 4, 5, 6, 8])


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 70), BITS, st.integers(0, 99))
def test_codes_come_back(rows: int, width: int, bits: int, seed: int) -> None:
    codes = torch.randint(2**bits, (rows, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, packed_width(width, bits))
    assert torch.equal(unpack_codes(packed, width, bits), codes)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), BITS, st.sampled_from([8, 16, 32]), st.integers(0, 99))
def test_weights_are_within_half_a_step_and_zeros_are_zeros(
    rows: int, width: int, bits: int, group: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(rows, width) * 0.05
    weight[torch.rand(rows, width) < 0.3] = 0
    rounded = round_groups(weight, bits, group)
    dense = rounded.dense(group)
    step = spread(rounded.scale.float(), group, width)
    assert ((dense - weight).abs() <= step * 0.51 + step / 2).all()  # the zero is a whole step, too
    if rows * width >= 100:  # of few, each may happen to lie between two steps
        assert (dense - weight).abs().mean() <= step.mean() * 0.4
    assert not dense[weight == 0].any()
