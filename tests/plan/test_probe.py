"""Measuring a machine: the fit, and that all is measured (the measurement itself takes a minute)."""

from __future__ import annotations

import numpy as np
import pytest

from lmforge.plan import probe
from lmforge.plan.here import KINDS, amounts


def test_the_fit_finds_the_seconds_of_each_kind_of_work() -> None:
    draw = np.random.default_rng(0)
    truth = np.array([1e-11, 0.0, 3e-9, 1e-3])
    table = draw.uniform(0.1, 1, (12, 4)) * np.array([1e10, 1e10, 1e8, 1e2])
    found = probe.non_negative(table, table @ truth)
    assert found == pytest.approx(truth, rel=1e-3, abs=1e-15)
    assert (probe.non_negative(table, np.abs(draw.normal(1, 1, 12)) + 0.1) >= 0).all()


def test_every_kind_of_work_is_in_some_network_that_is_timed() -> None:
    table = np.array([[amounts(config, tokens)[kind] for kind in KINDS] for config, tokens in probe.configs()])
    assert (table.max(axis=0) > 0).all()
    assert np.linalg.matrix_rank(table / table.max(axis=0)) == len(KINDS)


@pytest.mark.slow
def test_a_machine_is_measured() -> None:
    speeds = probe.measure()
    assert speeds.seconds["products"] > 0
    assert speeds.update > 0
    assert speeds.beside >= 1
    assert 10**8 < speeds.process < 3 * 10**9
