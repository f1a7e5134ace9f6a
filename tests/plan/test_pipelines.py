"""Pipeline schedules as simulated events against theory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.plan.pipelines import SCHEDULES, Passes, Schedule, bubble, orders, simulate, split_layers


@settings(max_examples=60, deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    stages=st.integers(1, 9),
    rounds=st.integers(1, 4),
    parts=st.integers(1, 4),
    forward=st.floats(0.1, 5),
    backward=st.floats(0.1, 9),
)
def test_the_simulated_bubble_is_the_formulas(
    schedule: Schedule, stages: int, rounds: int, parts: int, forward: float, backward: float
) -> None:
    parts = parts if schedule == "interleaved" else 1
    backward, weights = (2 * forward, forward) if schedule == "zero-bubble" else (backward, 0.0)
    found = simulate(schedule, stages, rounds * stages, Passes(forward, backward, weights), parts)
    assert found.bubble == pytest.approx(bubble(schedule, stages, forward, backward, weights), abs=1e-9)
    assert found.work == pytest.approx(rounds * stages * parts * (forward + backward))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_pass_is_done_once(schedule: Schedule) -> None:
    parts = 2 if schedule == "interleaved" else 1
    kinds = "FBW" if schedule == "zero-bubble" else "FB"
    for rank, mine in enumerate(orders(schedule, 3, 6, parts)):
        expected = {(kind, part * 3 + rank, number) for kind in kinds for part in range(parts) for number in range(6)}
        assert len(mine) == len(expected)
        assert {tuple(each) for each in mine} == expected


def test_activations_held_are_what_each_schedule_is_known_for() -> None:
    passes = Passes(1, 2, 1)
    assert simulate("gpipe", 4, 16, passes).held == (16, 16, 16, 16)
    assert simulate("1f1b", 4, 16, passes).held == (4, 3, 2, 1)
    assert simulate("zero-bubble", 4, 16, passes).held == (4, 4, 4, 4)  # as 1f1b's fullest rank
    assert simulate("interleaved", 4, 16, passes, 2).held[0] == 4 * 2 + 3  # 1 + (p − 1)/(p·v) times 1f1b's


def test_hand_overs_slow_ranks_and_the_output_matrix_take_time() -> None:
    even = simulate("1f1b", 4, 8, Passes(1, 2)).seconds
    assert simulate("1f1b", 4, 8, Passes(1, 2, hand_over=0.1)).seconds >= even + 2 * 3 * 0.1 - 1e-9
    # one rank that takes twice as long makes all of them wait for it
    assert simulate("1f1b", 4, 8, Passes(1, 2), slow=[1, 1, 2, 1]).seconds >= 8 * 6
    heavy = simulate("1f1b", 4, 8, Passes(1, 2), loads=[1, 1, 1, 2])
    assert heavy.work == pytest.approx(8 * 6)
    assert heavy.seconds > even


def test_what_a_schedule_cannot_do_is_said() -> None:
    with pytest.raises(InputError, match="interleaved has more"):
        orders("1f1b", 2, 4, parts=2)
    with pytest.raises(InputError, match="multiple of 4"):
        orders("interleaved", 4, 9, parts=2)


def test_layers_are_split_so_that_the_output_matrix_finds_room() -> None:
    assert split_layers(12, 4, 0) == [3, 3, 3, 3]
    assert split_layers(12, 4, 2) == [4, 3, 3, 2]
    assert split_layers(300, 15, 24.5)[-1] == 0
    assert split_layers(7, 1, 3) == [7]
    for layers, parts, head in ((13, 4, 1.3), (100, 7, 4), (9, 9, 0)):
        found = split_layers(layers, parts, head)
        assert sum(found) == layers
        assert max(*found[:-1], found[-1] + head) < (layers + head) / parts + 1
