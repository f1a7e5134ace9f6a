"""Intervals against published and exact values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.intervals import Z, bootstrap_difference, bootstrap_median, bootstrap_ratio, difference, wilson


@pytest.mark.parametrize(
    ("successes", "items", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_table(successes: int, items: int, low: float, high: float) -> None:
    assert wilson(successes, items) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    successes, items = counts
    low, high = wilson(successes, items)
    assert 0 <= low <= successes / items + 1e-12
    assert successes / items - 1e-12 <= high <= 1
    assert wilson(items - successes, items) == pytest.approx((1 - high, 1 - low))


def test_the_ends_are_exact_and_nothing_is_known_without_items() -> None:
    assert wilson(0, 64)[0] == 0
    assert wilson(64, 64)[1] == 1
    assert wilson(0, 0) == (0, 1)
    assert bootstrap_ratio(np.ones(1), np.ones(1), 0) is None
    assert bootstrap_median(np.ones(1), 0) is None


def test_bootstrap_of_a_mean_comes_near_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(10, 2, 400)
    low, high = bootstrap_ratio(values, np.ones(400), 0, resamples=4000)  # type: ignore[misc]
    half = Z * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        sizes = rng.integers(1, 50, 60)
        low, high = bootstrap_ratio(sizes * rng.normal(2.0, 0.5, 60), sizes, trial, resamples=300)  # type: ignore[misc]
        inside += low <= 2.0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_bootstrap_weighs_items_by_their_denominator_and_repeats() -> None:
    bits, sizes = np.array([10.0, 1000.0, 20.0, 900.0]), np.array([10, 500, 10, 500])
    once = bootstrap_ratio(bits, sizes, 7)
    assert once == bootstrap_ratio(bits, sizes, 7)
    assert once is not None
    assert once[0] <= bits.sum() / sizes.sum() <= once[1]
    assert bootstrap_ratio(2 * sizes, sizes, 0) == (2, 2)  # no spread in the ratio, whatever the sizes


def test_pairs_are_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(100, 1000, 50)
    first = sizes * rng.normal(2, 0.5, 50)
    second = first - 0.01 * sizes
    assert bootstrap_difference(first, second, sizes, 0) == pytest.approx((-0.01, -0.01))


def test_difference_of_symmetric_intervals_adds_squares() -> None:
    assert difference((1.0, 0.7, 1.3), (3.0, 2.6, 3.4)) == pytest.approx((1.5, 2.5))


def test_difference_of_wilson_intervals_is_newcombes_hybrid_score() -> None:
    # Newcombe 1998, "Interval estimation for the difference between independent proportions", table II, method 10:
    # 56/70 − 48/80
    low, high = difference((48 / 80, *wilson(48, 80)), (56 / 70, *wilson(56, 70)))
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_median_of_measurements() -> None:
    low, high = bootstrap_median(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), 0)  # type: ignore[misc]
    assert 1 <= low <= 3 <= high <= 100
