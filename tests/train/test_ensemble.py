"""Averages, soups and networks together: what they are, and that the choice is never worse than the best single
network."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.train.ensemble import Choice, MovingAverage, average, mix, snapshot_steps


def bowl(weights):  # nats of two tokens, least at w = 1
    return (weights["w"] - 1).square().expand(2) / 2 + 1.0


def choice_of(values: dict[int, float]) -> Choice:
    return Choice(lambda step: {"w": torch.tensor([values[step]])}, bowl, text_bytes=2)


@given(st.dictionaries(st.integers(1, 99), st.floats(-3, 5), min_size=1, max_size=5), st.none() | st.floats(-3, 5))
def test_the_choice_is_no_worse_than_the_best_single(values: dict[int, float], moving: float | None) -> None:
    choice = choice_of(values)
    best, weights = choice.choose(list(values), None if moving is None else {"w": torch.tensor([moving])})
    singles = [candidate.bits_per_byte for candidate in choice.table if len(candidate.members) == 1]
    assert best.bits_per_byte <= min(singles)
    assert float(bowl(weights).sum()) / math.log(2) / 2 == pytest.approx(best.bits_per_byte)
    assert best.networks == 1
    assert [c.bits_per_byte for c in choice.table] == sorted(c.bits_per_byte for c in choice.table)


def test_the_greedy_soup_leaves_out_what_does_not_help() -> None:
    choice = choice_of({10: 0.6, 20: 1.5, 30: -9.0})  # the third would spoil it
    best, weights = choice.choose([10, 20, 30])
    assert best.members == (10, 20)
    assert weights["w"].item() == pytest.approx(1.05)
    assert next(c.members for c in choice.table if c.name == "greedy soup") == (10, 20)
    assert {c.name for c in choice.table} == {
        "step 10",
        "step 20",
        "step 30",
        "average of the last 2",
        "average of the last 3",
        "greedy soup",
        "3 networks together",
    }


def test_averaging_changes_nothing_that_was_loaded() -> None:
    held = {1: {"w": torch.tensor([1.0])}, 2: {"w": torch.tensor([3.0])}}
    assert average(held.__getitem__, [1, 2])["w"].item() == 2.0
    assert (held[1]["w"].item(), held[2]["w"].item()) == (1.0, 3.0)


def test_networks_together_predict_by_their_mean_probability() -> None:
    p = torch.tensor([[0.5, 0.1], [0.25, 0.3]])
    assert torch.allclose(mix([-p[0].log(), -p[1].log()]).float(), -p.mean(0).log())


def test_snapshots_are_of_the_end() -> None:
    assert snapshot_steps(560, 4) == [476, 504, 532, 560]
    assert snapshot_steps(2, 4) == [1, 2]
    assert snapshot_steps(100, 0) == []


def test_the_moving_average_begins_late_and_forgets_its_start() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    moving = MovingAverage(model, 100)  # horizon 5, from step 80 on
    for step in range(1, 101):
        with torch.no_grad():
            model.weight.fill_(float(step))
        moving.update(step)
        assert bool(moving.weights) == (step > 80)
        if step == 83:
            assert moving.weights["weight"].item() == pytest.approx(82.0)  # the plain mean of 81, 82, 83
    assert 94 < moving.weights["weight"].item() < 97
    again = MovingAverage(model, 100)
    again.load_state_dict({"weight": torch.tensor([[7.0]])})
    assert again.weights["weight"].item() == 7.0
