"""What is written is what is read."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lmforge.recipe import parse_recipe, to_toml


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    steps=st.integers(1, 10**9),
    rate=st.floats(1e-9, 1e3),
    path=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=30),
    layers=st.integers(1, 500),
    biases=st.booleans(),
)
def test_written_recipes_read_back_equal(
    name: str, steps: int, rate: float, path: str, layers: int, biases: bool, tmp_path_factory: Any
) -> None:
    recipe = parse_recipe(
        {
            "name": name,
            "corpus": {"sources": [{"kind": "folder", "path": "/" + path, "genre": "web"}, {"kind": "python-library"}]},
            "model": {"layers": layers, "biases": biases},
            "train": {"steps": steps, "peak_lr": rate},
        }
    )

    again = parse_recipe(tomllib.loads(to_toml(recipe)))
    assert again == recipe
