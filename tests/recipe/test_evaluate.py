"""Tasks by name and with settings, in one recipe; written out and read again they are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.recipe import load_recipe, parse_recipe, to_toml
from lmforge.recipe.evaluate import TASK_SETTINGS, Evaluate

TABLES = st.fixed_dictionaries(
    {"name": st.sampled_from(["bits_per_byte", "answers", "completions_parse"])},
    optional={"limit": st.integers(1, 99), "data": st.just("texts.jsonl")},
)


@given(st.lists(TABLES | st.sampled_from(["passkey", "kneser_ney"]), max_size=5))
def test_any_choice_survives_being_written(tasks: list[object]) -> None:
    tasks = [{**task, "label": f"own-{n}"} if isinstance(task, dict) else task for n, task in enumerate(tasks)]
    recipe = parse_recipe({"evaluate": {"tasks": tasks}})
    import tomllib

    again = parse_recipe(tomllib.loads(to_toml(recipe)))
    assert again.evaluate == recipe.evaluate
    titles = [settings.title for settings in recipe.evaluate.chosen]
    assert len(titles) == len({*titles}) == len(recipe.evaluate.tasks)


def test_the_old_spelling_stays_what_it_was() -> None:
    assert Evaluate(tasks=("kneser_ney", "kneser_ney")).tasks == ("kneser_ney",)
    assert Evaluate().tasks == ("bits_per_byte", "completions_parse", "generation_speed", "kneser_ney")
    assert Evaluate().model_dump(mode="json")["tasks"] == [*Evaluate().tasks]


def test_data_is_looked_for_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[[evaluate.tasks]]\nname = "bits_per_byte"\ndata = "wiki.txt"\n')
    (settings,) = load_recipe(tmp_path / "r.toml").evaluate.chosen
    assert settings.data == tmp_path / "wiki.txt"  # type: ignore[attr-defined]


def test_wrong_choices_are_refused() -> None:
    for task, message in [
        ("pasky", r"evaluate\.tasks\.0\.name: a task is needed, .*did you mean 'passkey'"),
        ({"name": "passkey", "limt": 3}, "unknown key 'limt' in evaluate.tasks.0.passkey; did you mean 'limit'"),
        ({"name": "generation_speed", "data": "x"}, "unknown key 'data'"),
        ({"name": "passkey", "label": "a/b"}, "label"),
        (3, "a table is needed, with name"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_recipe({"evaluate": {"tasks": [task]}})
    assert "passkey" in TASK_SETTINGS
