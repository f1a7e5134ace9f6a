"""First values by name: those of a whole network have the standard deviations that are told."""

from __future__ import annotations

import pytest

from lmforge.model.first_values import constant, deviation
from lmforge.model.gpt import GPT, GPTConfig


def test_a_network_begins_with_what_is_told() -> None:
    config = GPTConfig(
        vocab_size=300, context=8, layers=2, d_model=64, heads=2, kv_heads=2, d_ff=256, norm_offset=1.0, biases=True
    )
    model = GPT(config)
    model.initialise(0, base_width=32, output_multiplier=3.0)
    for name, parameter in model.named_parameters():
        std = deviation(config, name, parameter.shape, 0.5)
        if std is None:
            assert parameter.eq(constant(config, name, 1.5)).all(), name
        else:
            assert float(parameter.std()) == pytest.approx(std, rel=0.05), name
    assert constant(config, "norm.weight", 1.5) == 0.5
    assert deviation(config, "blocks.0.ff.down.weight", model.blocks[0].ff.down.weight.shape, 1.0) == 0.01
