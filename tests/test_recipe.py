"""Recipes: what may be said, how a mistake is answered, and that what is written is what is read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.recipe import Source, load_recipe, parse_recipe, to_toml


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
    ],
)
def test_mistakes_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_recipe(data, "r.toml")
    assert str(caught.value).startswith("r.toml: ")
    assert "\n" not in str(caught.value)


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
    import tomllib

    again = parse_recipe(tomllib.loads(to_toml(recipe)))
    assert again == recipe


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


def test_damage_is_refused_unless_said_otherwise() -> None:
    source = {"kind": "folder", "path": Path("x")}
    assert not Source(**source).skips_damage
    assert Source(**source, damaged="skip").skips_damage


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
