"""Settings are completed from [evaluate]; what a task says of a score holds for any file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmforge.evaluate.task import TASKS, Task
from lmforge.recipe import Recipe, parse_recipe
from lmforge.recipe.evaluate import TASK_SETTINGS

VALUES = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.integers())
FIGURES = ["value", "metric", "items", "clean_value", "leaked_share", "against", "lengths", "accuracy", "depths"]
KEYS = st.sampled_from([*FIGURES, "baselines", "beside"])


def test_a_limit_that_is_left_out_is_that_of_the_section() -> None:
    recipe = parse_recipe({"evaluate": {"items": 7, "max_tokens": 90, "tasks": [{"name": "passkey", "limit": 3}]}})
    (given_limit,) = recipe.evaluate.chosen
    assert TASKS["passkey"].settled(recipe).limit == 7
    assert TASKS["passkey"].settled(recipe, given_limit).limit == 3
    assert TASKS["bits_per_byte"].settled(recipe).max_tokens == 90
    assert TASKS["bits_per_byte"].settled(recipe).limit is None
    assert TASKS["generation_speed"].settled(recipe).limit is None
    assert {*TASKS} == {*TASK_SETTINGS}


@pytest.mark.parametrize("name", [*TASKS, ""])
@example({"value": 0.0, "baselines": True, "beside": True, "clean_value": True, "lengths": True, "depths": True})
@example({"value": 0.0, "baselines": [1], "beside": [1], "clean_value": [1], "lengths": [1], "depths": [1]})
@given(score=st.dictionaries(KEYS, VALUES))
def test_no_file_can_break_how_a_task_shows_itself(name: str, score: dict[str, Any]) -> None:
    task = TASKS.get(name, Task())
    assert isinstance(task.headline(score), str)
    task.card(score, {"kneser_ney": score})
    task.level(score)
    task.entropy(score)
    assert isinstance(dict(task.beside(score)), dict)
    assert all(isinstance(each, str) for each in task.sentences(score))
    task.maps("model", score)


def test_default_tasks_are_all_known() -> None:
    assert {settings.name for settings in Recipe().evaluate.chosen} <= {*TASKS}
