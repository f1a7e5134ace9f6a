"""The metadata of a network say what config.json says."""

from __future__ import annotations

import pytest

from lmforge.formats.gguf_keys import metadata_of
from lmforge.formats.gguf_write import architecture_for
from tests.formats.ggufs import SHAPES, model


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_stand_under_the_architecture(name: str) -> None:
    config = model(name).config
    architecture, _, settings = architecture_for(config)
    assert architecture == name.split("-")[0]
    said = metadata_of(architecture, settings, config)
    assert all(key.startswith(f"{architecture}.") for key in said)
    assert said[f"{architecture}.block_count"] == config.layers
    assert said[f"{architecture}.context_length"] == config.context
    if architecture == "gemma3":
        assert said["gemma3.attention.sliding_window_pattern"] == 6
        assert said["gemma3.attention.sliding_window"] == config.window
