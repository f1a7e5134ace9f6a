"""Names and layouts of GGUF tensors, both ways."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.formats.gguf_names import (
    ARCHITECTURES,
    checkpoint_name,
    gguf_name,
    halves_from_pairs,
    laid_out,
    pairs_from_halves,
)


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(0, 3))
def test_pairs_and_halves_are_inverse(heads: int, half: int, columns: int) -> None:
    shape = (heads * 2 * half, columns) if columns else (heads * 2 * half,)
    rows = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert torch.equal(pairs_from_halves(halves_from_pairs(rows, heads), heads), rows)
    first = halves_from_pairs(torch.arange(heads * 2 * half), heads)[: 2 * half].tolist()
    assert first == [*range(0, 2 * half, 2), *range(1, 2 * half, 2)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_name_comes_back(architecture: str) -> None:
    names = ARCHITECTURES[architecture][2]
    for part in names:
        outside = part in ("token_embd", "position_embd", "output_norm", "output")
        name = f"{part}.weight" if outside else f"blk.11.{part}.weight"
        theirs = checkpoint_name(architecture, name)
        assert theirs is not None
        assert gguf_name(architecture, theirs) == name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layouts_are_inverse(architecture: str) -> None:
    settings = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rows = torch.randn(48, 6)
    for part in ARCHITECTURES[architecture][2]:
        name = f"blk.0.{part}.weight"
        there = laid_out(architecture, settings, name, back=True)(rows)
        assert torch.allclose(laid_out(architecture, settings, name)(there), rows, atol=1e-6)


def test_what_has_no_name_is_said() -> None:
    assert checkpoint_name("llama", "blk.0.ssm_in.weight") is None
    with pytest.raises(InputError, match="llama has no tensor"):
        gguf_name("llama", "model.layers.0.mamba.weight")
