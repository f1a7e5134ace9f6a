"""The planner against published runs: one set of constants, half of the runs never seen by the fit."""

from __future__ import annotations

import statistics

from lmforge.plan.published import RUNS, fitted
from lmforge.plan.step_time import step_time


def errors(of_fit: bool) -> list[float]:
    return [
        step_time(run.shape, run.accelerator, run.layout).total / run.seconds - 1
        for number, run in enumerate(RUNS)
        if fitted(number) == of_fit
    ]


def test_steps_of_published_runs_are_foretold() -> None:
    unseen = [abs(error) for error in errors(False)]
    assert len(RUNS) >= 40
    assert statistics.median(unseen) <= 0.08
    assert statistics.mean(unseen) <= 0.12
    assert max(map(abs, errors(False) + errors(True))) <= 0.35


def test_every_run_names_its_source_and_its_own_layout() -> None:
    assert all(run.source and run.seconds > 0 for run in RUNS)
    assert len({run.name for run in RUNS}) == len(RUNS)
    for run in RUNS:
        assert run.layout.pipeline <= run.shape.layers
