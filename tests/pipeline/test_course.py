"""Two lengths of a training: up to which checkpoint they are the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.pipeline.course import Course, common_start
from lmforge.recipe import Recipe, Tokens, Train

WSD = {"schedule": "wsd", "warmup": 5}


def course(steps: int, **train: Any) -> Course:
    return Course(Recipe(tokens=Tokens(context=32), train=Train(steps=steps, batch_tokens=64, **train)), 100_000)


def test_a_stable_rate_goes_on_until_it_would_fall() -> None:
    assert common_start(course(100, **WSD), course(200, **WSD), range(10, 101, 10))[0] == 80
    assert common_start(course(200, **WSD), course(100, **WSD), range(10, 201, 10))[0] == 80
    assert common_start(course(100, **WSD), course(200, **WSD), [90, 100])[0] is None


@pytest.mark.parametrize(
    ("settings_", "word"),
    [
        ({}, "learning rate (cosine"),
        ({"schedule": "wsd"}, "warm-up of"),
        ({**WSD, "weight_decay_schedule": "linear"}, "weight decay"),
    ],
)
def test_what_depends_on_the_length_from_the_start_cannot_go_on(settings_: dict[str, Any], word: str) -> None:
    start, why = common_start(course(100, **settings_), course(200, **settings_), range(10, 101, 10))
    assert start is None
    assert word in why


@pytest.mark.parametrize(
    ("schedule", "start"),
    [
        ({"batch_schedule": ((0.0, 32), (0.3, 64))}, 30),
        ({"context_schedule": ((0.0, 16), (0.2, 32))}, 20),
        ({"mixture": {"code": ((0.0, 1.0), (0.4, 2.0))}}, 40),
    ],
)
def test_shares_of_the_training_differ_from_the_first_change_on(schedule: dict[str, Any], start: int) -> None:
    assert common_start(course(100, **WSD, **schedule), course(200, **WSD, **schedule), range(10, 101, 10))[0] == start


def test_averages_of_the_end_must_not_have_begun() -> None:
    late = {"schedule": "wsd", "warmup": 5}
    assert common_start(course(1000, **late, ensemble=40), course(2000, **late, ensemble=40), range(1, 1001))[0] < 800
    assert common_start(course(1000, **late, ensemble=0), course(2000, **late, ensemble=0), range(1, 1001))[0] == 801


@settings(max_examples=40)
@given(
    old=st.integers(10, 200),
    new=st.integers(10, 200),
    schedule=st.sampled_from(["cosine", "wsd"]),
    warmup=st.integers(0, 20) | st.none(),
    begin=st.floats(0.01, 0.9),
    ensemble=st.integers(0, 6),
)
def test_every_step_before_the_start_is_the_same(
    old: int, new: int, schedule: str, warmup: int | None, begin: float, ensemble: int
) -> None:
    train = {"schedule": schedule, "warmup": warmup, "ensemble": ensemble, "batch_schedule": ((0.0, 64), (begin, 128))}
    a, b = course(old, **train), course(new, **train)
    start, _ = common_start(a, b, range(1, old + 1))
    for step in range(start or 0):
        assert [*a.at(step).values()] == [*b.at(step).values()]
    if start is not None:
        assert start <= min(old, new, a.averages_begin, b.averages_begin)
    assert common_start(a, a, range(1, old + 1))[0] == (a.averages_begin if a.averages_begin else None)
