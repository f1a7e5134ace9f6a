"""Sizes and weights as people write them."""

from __future__ import annotations

import tomllib

import pytest

from lmforge.errors import InputError
from lmforge.recipe import Source, parse_recipe, to_toml


def test_a_weight_is_a_number_or_a_curriculum() -> None:
    def source(**more: object) -> Source:
        return parse_recipe({"corpus": {"sources": [{"kind": "folder", "path": "x", **more}]}}).corpus.sources[0]

    plain, changing = source(weight=2.5), source(weight=[[0, 1.0], [0.8, 0]])
    assert (plain.weight, plain.copies, plain.curriculum) == (2.5, 2.5, ((0.0, 1.0),))
    assert (changing.copies, changing.curriculum) == (1.0, ((0.0, 1.0), (0.8, 0.0)))
    recipe = parse_recipe({"corpus": {"sources": [{"kind": "folder", "path": "x", "weight": [[0, 1.0], [0.8, 0]]}]}})
    assert parse_recipe(tomllib.loads(to_toml(recipe))) == recipe
    for wrong in ([], [[0.1, 1.0]], [[0, 1.0], [0, 2.0]], [[0, 1], [0.9, 1], [0.5, 1]], [[0, 0]], -1, "much"):
        with pytest.raises(InputError, match=r"corpus\.sources\.0"):
            source(weight=wrong)


@pytest.mark.parametrize(
    ("written", "size"),
    [("2GiB", 2**31), ("500 MB", 500_000_000), ("1.5kB", 1500), ("77", 77), (123, 123), ("1 TiB", 2**40)],
)
def test_memory_is_given_in_bytes_or_with_a_unit(written: str | int, size: int) -> None:
    recipe = parse_recipe({"tokens": {"max_ram": written}})
    assert recipe.tokens.max_ram == size
    assert tomllib.loads(to_toml(recipe))["tokens"]["max_ram"] == size


@pytest.mark.parametrize("written", ["much", "2 XB", "-1", 0, "GiB"])
def test_a_memory_that_is_none_is_refused(written: str | int) -> None:
    with pytest.raises(InputError, match=r"tokens\.max_ram"):
        parse_recipe({"tokens": {"max_ram": written}})
