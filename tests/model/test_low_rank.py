"""Two thin matrices in the place of one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmforge.model.low_rank import LowRankLinear, linear


@pytest.mark.parametrize("bias", [False, True])
def test_thin_matrices_are_their_product(bias: bool) -> None:
    layer, x = linear(7, 5, bias, 3).double(), torch.randn(2, 4, 7, dtype=torch.float64)
    assert isinstance(layer, LowRankLinear)
    one = nn.Linear(7, 5, bias=bias).double()
    one.weight = nn.Parameter(layer[1].weight @ layer[0].weight)
    if bias:
        one.bias = layer[1].bias
    torch.testing.assert_close(layer(x), one(x))
    assert sum(p.numel() for p in layer.parameters()) == 3 * (7 + 5) + 5 * bias
    assert (layer.in_features, layer.out_features) == (7, 5)


def test_without_a_rank_it_is_one_matrix() -> None:
    assert type(linear(7, 5, False)) is nn.Linear
