"""One number sizes a whole family, each member compute-optimal, and the recipe's other choices stay."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.plan.dial import NAMED, dialled, dialled_text
from lmforge.plan.hardware import Hardware
from lmforge.plan.propose import recipe_for
from lmforge.recipe import Recipe, load_recipe, parse_recipe
from tests.conftest import tiny_texts


def family(path: Path) -> dict[str, Recipe]:
    recipe = load_recipe(path)
    return {name: load_recipe(path, dialled(recipe, name)) for name in (*NAMED, "7")}


@pytest.mark.parametrize("length", ["steps = 10", "tokens = 10"])
def test_each_member_sees_twenty_tokens_a_parameter(tmp_path: Path, length: str) -> None:
    (tmp_path / "r.toml").write_text(
        f'name = "x"\n[model]\nlayers = 3\nactivation = "relu2"\n[train]\n{length}\noptimizer = "muon"\n'
    )
    recipes = family(tmp_path / "r.toml")
    for name, recipe in recipes.items():
        matrices = 12 * recipe.model.layers * recipe.model.d_model**2
        tokens = recipe.train.tokens or recipe.train.steps * recipe.train.batch_tokens
        assert 20 * matrices <= tokens <= 20 * matrices + recipe.train.batch_tokens
        assert recipe.model.d_model // recipe.model.heads == 64
        assert (recipe.name, recipe.model.activation, recipe.train.optimizer) == (f"x-{name}", "relu2", "muon")
    sizes = [recipes[name] for name in NAMED]
    assert [r.train.batch_tokens for r in sizes] == sorted(r.train.batch_tokens for r in sizes)
    assert [r.train.peak_lr for r in sizes] == sorted((r.train.peak_lr for r in sizes), reverse=True)
    assert recipes["7"].model.layers == 7


@pytest.mark.parametrize("dial", ["gigantic", "0", "-3", "1.5", "999", ""])
def test_other_dials_are_refused(dial: str) -> None:
    with pytest.raises(InputError, match="give tiny, small, medium, large, huge, or a number of layers"):
        dialled(Recipe(), dial)


def test_a_new_recipe_is_written_with_the_dials_keys(tmp_path: Path) -> None:
    text = recipe_for(tiny_texts(tmp_path / "texts"), Hardware(2, 8 << 30, matrix_flops=1e11))
    plain = parse_recipe(tomllib.loads(text))
    written = dialled_text(text, "medium")
    (tmp_path / "plain.toml").write_text(text)
    asked = load_recipe(tmp_path / "plain.toml", dialled(plain, "medium"))
    found = parse_recipe(tomllib.loads(written))
    assert (found.model, found.train, found.name) == (asked.model, asked.train, asked.name)
    assert found.tokens == plain.tokens
    assert written.startswith("# Sized by --dial medium")
    assert "largest network" not in written
    assert parse_recipe(tomllib.loads(dialled_text("[train]\nsteps = 5\n[serve]\nport = 1\n", "2"))).train.steps != 5
