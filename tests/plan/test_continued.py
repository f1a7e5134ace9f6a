"""A recipe that goes on from a model names it, keeps its network, and is sized to texts and machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.formats.registry import FORMATS
from lmforge.plan.continued import MOST_EPOCHS, continued_for
from lmforge.plan.hardware import detect
from lmforge.recipe import load_recipe
from tests.conftest import tiny_texts
from tests.formats.ggufs import model


def test_a_recipe_goes_on_from_a_model(tmp_path: Path) -> None:
    FORMATS["native"].write(model(), tmp_path / "m")
    texts = tiny_texts(tmp_path / "texts")
    text = continued_for(texts, str(tmp_path / "m"), detect(measure=False))
    (tmp_path / "recipe.toml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.model.base == str(tmp_path / "m")
    assert recipe.model.layers == 2
    assert recipe.tokens.context <= 128
    assert recipe.train.peak_lr == pytest.approx(1e-4)
    size = sum(path.stat().st_size for path in texts.iterdir())
    assert (recipe.train.steps or 0) * recipe.train.batch_tokens <= max(20 * 1024, MOST_EPOCHS * size)


def test_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model"):
        continued_for(tiny_texts(tmp_path / "texts"), "nowhere", detect(measure=False))
