"""Failures over a long training: events against the formula, and what spares and checkpoints do."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from lmforge.plan.goodput import Faults, daly, expected_seconds, simulate, young

FAULTS = Faults(nodes=100, failure=100 * 20_000.0, checkpoint=60.0, restart=300.0, repair=1.0, spares=10**6)
WORK = 4e6


def mean_seconds(interval: float, faults: Faults = FAULTS, seeds: int = 8) -> float:
    return statistics.mean(simulate(WORK, interval, faults, seed).seconds for seed in range(seeds))


@pytest.mark.parametrize("interval", [600.0, 1500.0, 6000.0])
def test_events_take_as_long_as_the_formula_says(interval: float) -> None:
    assert mean_seconds(interval) == pytest.approx(expected_seconds(WORK, interval, FAULTS), rel=0.02)


def test_the_best_interval_loses_least() -> None:
    best = daly(FAULTS.checkpoint, FAULTS.between)
    assert best == pytest.approx(young(FAULTS.checkpoint, FAULTS.between), rel=0.1)
    at = {factor: expected_seconds(WORK, best * factor, FAULTS) for factor in (0.3, 0.8, 1.0, 1.25, 3.0)}
    assert min(at, key=lambda factor: at[factor]) == 1.0
    assert mean_seconds(best) < min(mean_seconds(best / 4), mean_seconds(best * 4))
    assert daly(50_000.0, 20_000.0) == 20_000.0  # saving takes longer than a failure is away


def test_seconds_go_where_they_are_said_to_go() -> None:
    alone = Faults(nodes=1, failure=1e18, checkpoint=10.0)
    quiet = simulate(1000.0, 100.0, alone)
    assert quiet.seconds == 1000 + 9 * 10  # none after the last
    assert quiet.failures == 0
    slow = simulate(1e6, 1e4, dataclasses.replace(alone, checkpoint=0.0, slow=2e4, slower=1.5, noticed=2e3))
    # a tenth of the time is slow by half, of which a third is lost
    assert slow.share == pytest.approx(1 - 0.1 / 3, abs=0.015)
    assert slow.slowed > 0 == slow.lost


def test_spares_end_the_wait_for_repairs() -> None:
    few, many = (dataclasses.replace(FAULTS, spares=spares, repair=86_400.0) for spares in (0, 50))
    without, with_them = simulate(WORK, 1500.0, few), simulate(WORK, 1500.0, many)
    assert without.waiting > 0.5 * without.failures * 86_400.0
    assert with_them.waiting == 0
    assert with_them.share > 2 * without.share
