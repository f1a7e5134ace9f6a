"""The description's own figures follow from its preset."""

from __future__ import annotations

from pathlib import Path

from lmforge.model.config import network_of
from lmforge.plan.description import figures
from lmforge.recipe import load_recipe


def test_a_smaller_network_gives_its_own_figures() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "laptop.toml")
    told = figures(network_of(recipe, 4096))
    assert told["train_flops"] == 6 * told["parameters"] * 1.3e12
    assert told["parameter_updates"] == told["steps"] * told["parameters"]
