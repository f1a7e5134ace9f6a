"""The corpus section."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.recipe import Source, load_recipe, parse_recipe, to_toml


def test_damage_is_refused_unless_said_otherwise() -> None:
    source = {"kind": "folder", "path": Path("x")}
    assert not Source(**source).skips_damage
    assert Source(**source, damaged="skip").skips_damage


def test_synthesis_is_checked_and_its_model_found_beside_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        '[[corpus.synthesis]]\nmethod = "back_translation"\nmodel = "runs/translator"\n[[corpus.synthesis]]\nmethod = '
        '"noise"\n'
    )
    recipe = load_recipe(path)
    assert recipe.corpus.synthesis[0].model == tmp_path / "runs" / "translator"  # type: ignore[union-attr]
    written = tmp_path / "w.toml"
    written.write_text(to_toml(recipe))
    assert load_recipe(written) == recipe
    for step, message in (
        ({"method": "augment", "swp": 0.1}, "did you mean 'swap'"),
        ({"method": "augment", "share": 0.3}, "add up to 0.3, more than synthetic_share 0.2"),
        ({"method": "back_translation"}, "model = RUN, or hub"),
        ({"method": "rewrite"}, "'augment', 'noise', 'back_translation'"),
    ):
        with pytest.raises(InputError, match=message):
            parse_recipe({"corpus": {"synthesis": [step]}})
    with pytest.raises(InputError, match="tasks is a key of kind 'procedural'"):
        parse_recipe({"corpus": {"sources": [{"kind": "folder", "path": "x", "tasks": ["sort"]}]}})
