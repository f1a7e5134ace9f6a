"""What a recipe takes from `model.base`, and what it may not state beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.formats.registry import FORMATS
from lmforge.recipe import load_recipe, to_toml
from tests.formats.ggufs import model


def recipe(folder: Path, text: str = "") -> Path:
    if not (folder / "m").exists():
        FORMATS["native"].write(model(), folder / "m")
    (folder / "r.toml").write_text('[model]\nbase = "m"\n' + text)
    return folder / "r.toml"


def test_network_and_vocabulary_are_the_bases(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, "[train]\nsteps = 0\n"))
    assert (loaded.model.layers, loaded.model.activation, loaded.tokens.vocab_size) == (2, "swiglu", 261)
    assert (loaded.tokens.context, loaded.model.base) == (128, str(tmp_path / "m"))
    (tmp_path / "resolved.toml").write_text(to_toml(loaded))
    (tmp_path / "m").rename(tmp_path / "gone")
    assert load_recipe(tmp_path / "resolved.toml").model == loaded.model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("layers = 3\n", "model.layers: 3 is not 2"),
        ("[tokens]\nvocab_size = 300\n", "tokens.vocab_size: 300 is not 261"),
        ("[tokens]\ncontext = 4096\n", "at most 128 tokens"),
        ('[finetune]\nbase = "m"\ntask = "chat"\ntrain = "x.jsonl"\n', "leave"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(recipe(tmp_path, text))


def test_no_steps_need_a_base(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nsteps = 0\n")
    with pytest.raises(InputError, match=r"model\.base"):
        load_recipe(tmp_path / "r.toml")
