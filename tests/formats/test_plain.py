"""Weights in fewer bits become numbers again, and the network computes with them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lmforge.compress.quantize import quantize
from lmforge.errors import InputError
from lmforge.formats.plain import plain
from tests.formats.exporting import small


@pytest.mark.parametrize("changes", [{}, {"tied": False, "ngram_rows": 40}, {"experts": 4}])
def test_8_bit_layers_become_the_numbers_that_they_stand_for(changes: dict[str, object]) -> None:
    loaded = small(**changes)
    int8, _ = quantize(loaded.model)
    compressed = dataclasses.replace(loaded, model=int8, compression=({"method": "quantize"},))
    result, changed = plain(compressed)
    assert len(changed) == sum(name.endswith("scale") for name in int8.state_dict())
    assert result.compression == ()
    before, after = dict(loaded.model.named_parameters()), dict(result.model.named_parameters())
    assert before.keys() == after.keys()
    for name, parameter in after.items():
        step = before[name].abs().amax(-1, keepdim=True) / 127
        assert bool(((parameter - before[name]).abs() <= 0.51 * step).all()) or name not in changed
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        difference = (result.model(tokens) - int8(tokens)).norm() / int8(tokens).norm()
    assert 0 < float(difference) < 0.1  # activations are no longer rounded


def test_a_plain_model_is_left_as_it_is() -> None:
    loaded = small()
    assert plain(loaded) == (loaded, [])


def test_a_matrix_that_cannot_be_had_is_named() -> None:
    loaded = small()
    loaded.model.blocks[1].ff.up = nn.Identity()  # type: ignore[union-attr, assignment]
    with pytest.raises(InputError, match=r"blocks\.1\.ff\.up\.weight"):
        plain(loaded)
