"""A model with its tokenizer: what is asked of it, and what ends an answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lmforge.formats.load import load_any
from lmforge.tokens.bpe import train_tokenizer
from tests.serve.conftest import save_tiny


@pytest.mark.parametrize("size", [257, 261])
def test_the_server_asks_with_the_known_ids(tmp_path: Path, size: int) -> None:
    """The golden conversations of tests/tokens: the same ids as in training, for models with and without chat
    tokens."""
    path = Path(__file__).parents[1] / "tokens" / "golden" / "conversations.json"
    chat = size == 261
    asked = dataclasses.replace(load_any(save_tiny(tmp_path / "tiny")), tokenizer=train_tokenizer([], size, chat=chat))
    for conversation in json.loads(path.read_text("utf-8"))["conversations"]:
        assert asked.conversation(conversation["messages"]) == conversation[str(size)]["ask"]
    assert (asked.chat_stop == ()) is chat
    assert len(asked.stop_ids) == (5 if chat else 1)


def test_it_tells_its_shape_and_its_methods(tmp_path: Path) -> None:
    loaded = load_any(save_tiny(tmp_path / "tiny"))
    assert (loaded.config, loaded.context, loaded.methods) == (loaded.model.config, loaded.config.context, ())
    small = dataclasses.replace(loaded, compression=({"method": "prune"}, {"method": "quantize"}, {}))
    assert small.methods == ("prune", "quantize", "unknown")
