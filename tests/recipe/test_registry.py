"""Sections that parts bring along: the default ones cost no import of what they configure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lmforge.errors import InputError
from lmforge.recipe import QuantizeStep, parse_recipe

LAZY = """
import sys
from lmforge.recipe import parse_recipe
parse_recipe({"compress": {"steps": [{"method": "quantize"}]}})
assert "lmforge.compress" not in sys.modules
assert "torch" not in sys.modules
"""


def test_a_recipe_of_known_sections_imports_no_method() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_step_without_a_method_quantises() -> None:
    assert parse_recipe({"compress": {"steps": [{}]}}).compress.steps == (QuantizeStep(),)
    assert parse_recipe({"compress": {"steps": []}}).compress.steps == ()


def test_an_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"compress\.steps\.0\.method: a compression method is needed, one of: quantize"
    ):
        parse_recipe({"compress": {"steps": [{"method": "quantise"}]}})
