"""Recipes from files: overrides, paths, what is no recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.recipe import load_recipe


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = 1 =\n")
    with pytest.raises(InputError, match=r"broken.toml: not valid TOML: .*at line 1"):
        load_recipe(tmp_path / "broken.toml")


def test_overrides(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "a"\n')
    recipe = load_recipe(tmp_path / "r.toml", ["train.peak_lr=3e-4", "name=b", "evaluate.tasks=['kneser_ney']"])
    assert (recipe.train.peak_lr, recipe.name, recipe.evaluate.tasks) == (3e-4, "b", ("kneser_ney",))
    with pytest.raises(InputError, match=r"expected section\.key=value"):
        load_recipe(tmp_path / "r.toml", ["train.peak_lr"])
    with pytest.raises(InputError, match="name is a value, not a section"):
        load_recipe(tmp_path / "r.toml", ["name.x=1"])


def test_source_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[[corpus.sources]]\nkind = "folder"\npath = "texts"\n')
    assert load_recipe(tmp_path / "r.toml").corpus.sources[0].path == (tmp_path / "texts").resolve()
