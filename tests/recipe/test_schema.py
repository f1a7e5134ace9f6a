"""What a recipe may say, and how a mistake is answered."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lmforge.errors import InputError
from lmforge.recipe import parse_recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"trian": {}}, "trian: unknown key 'trian' in the top level; did you mean 'train'?"),
        ({"train": {"peek_lr": 1}}, "train.peek_lr: unknown key 'peek_lr' in train; did you mean 'peak_lr'?"),
        (
            {"corpus": {"sources": [{"kind": "folder", "path": "x", "gnre": "web"}]}},
            "corpus.sources.0.gnre: unknown key 'gnre'",
        ),
        ({"compress": {"steps": [{"method": "quantize", "bitts": 8}]}}, "unknown key 'bitts'"),
        ({"train": {"steps": "many"}}, "train.steps: Input should be a valid integer"),
        ({"train": {"steps": 5, "tokens": 5}}, "train: give steps or tokens, not both"),
        ({"model": {"d_model": 10, "heads": 3}}, "model: d_model 10 is not divisible by heads 3"),
        ({"model": {"d_model": 6, "heads": 2}}, "rope needs an even head width"),
        ({"model": {"heads": 4, "kv_heads": 3}}, "heads 4 is not divisible by kv_heads 3"),
        ({"corpus": {"sources": [{"kind": "folder"}]}}, "kind 'folder' needs a path"),
        ({"corpus": {"sources": [{"kind": "python-library", "path": "x"}]}}, "takes no path"),
        ({"name": "../x"}, "name: "),
        ({"seed": 2**63}, "seed: Input should be less than"),  # more than the generators take
    ],
)
def test_mistakes_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_recipe(data, "r.toml")
    assert str(caught.value).startswith("r.toml: ")
    assert "\n" not in str(caught.value)
