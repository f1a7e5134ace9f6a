"""Batches that grow: where each begins, and that no row is lost or given twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.recipe import Recipe, parse_recipe
from lmforge.tokens.batch_schedule import Ramp, ramp_of, with_length


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), max_size=4, unique_by=lambda pair: pair[0]),
    st.integers(1, 200),
)
def test_rows_before_a_step_are_the_sum_of_those_before_it(later: list[tuple[float, int]], steps: int) -> None:
    ramp = Ramp([(0.0, 3), *sorted(pair for pair in later if pair[0])], steps)
    total = 0
    for step in range(steps):
        assert ramp.before(step) == total
        total += ramp.rows(step)
    assert ramp.before(steps) == total


def test_a_recipe_states_steps_or_tokens() -> None:
    keys = {"batch_schedule": [[0, 100], [0.5, 320]]}
    ramp = ramp_of(parse_recipe({"tokens": {"context": 32}, "train": {"steps": 10, **keys}}))
    assert [ramp.rows(step) for step in range(10)] == [3] * 5 + [10] * 5
    ramp = ramp_of(parse_recipe({"tokens": {"context": 32}, "train": {"tokens": 10_000, **keys}}))
    assert 10_000 <= ramp.before(ramp.steps) * 32 < 10_000 + 2 * 320
    assert ramp_of(parse_recipe({"train": {"tokens": 81_920}})).steps == 10


@pytest.mark.parametrize("schedule", [[[0.1, 64]], [[0, 64], [0, 128]], [[0, 64], [0.6, 128], [0.5, 256]]])
def test_a_schedule_out_of_order_is_refused(schedule: list[list[float]]) -> None:
    from lmforge.errors import InputError

    with pytest.raises(InputError, match="batch_schedule is a list of"):
        parse_recipe({"train": {"batch_schedule": schedule}})


def test_epochs_give_a_fine_tuning_its_length() -> None:
    given = {"finetune": {"base": "b", "task": "chat", "train": "t", "epochs": 1.5}}
    assert with_length(Recipe.model_validate(given), 1000).train.tokens == 1500
    assert with_length(Recipe.model_validate(given | {"train": {"tokens": 5}}), 1000).train.tokens == 5
    assert with_length(Recipe.model_validate(given | {"train": {"steps": 5}}), 1000).train.tokens is None
    assert with_length(Recipe(), 1000).train.tokens is None
