"""Small integers packed bit by bit."""

from __future__ import annotations

import pytest
import torch

from lmforge.kernels.bits import pack_codes, packed_width, unpack_codes


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_what_is_packed_comes_out_again(bits: int) -> None:
    codes = torch.randint(2**bits, (5, 13), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (5, packed_width(13, bits))
    assert torch.equal(unpack_codes(packed, 13, bits), codes)
