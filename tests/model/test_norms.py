"""Norms against the library's modules."""

from __future__ import annotations

import pytest
import torch

from lmforge.model.norms import Norm


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_a_norm_equals_the_library(kind: str) -> None:
    x = torch.randn(3, 5, 8)
    module = Norm(8, kind, bias=True, eps=1e-3)
    peer = torch.nn.LayerNorm(8, eps=1e-3) if kind == "layernorm" else torch.nn.RMSNorm(8, eps=1e-3)
    assert torch.allclose(module(x), peer(x), atol=1e-6)
    assert (module.bias is None) == (kind == "rmsnorm")
