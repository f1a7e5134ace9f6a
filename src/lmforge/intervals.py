"""95% confidence intervals of scores, and of the difference of two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # the normal distribution's 97.5% point
RESAMPLES = 1000
Interval = tuple[float, float]
Numbers = NDArray[Any]


def wilson(successes: int, items: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927, "Probable inference", p. 210); (0, 1) where there are no
    items."""
    if items == 0:
        return 0.0, 1.0
    share, z2 = successes / items, Z * Z
    middle = (share + z2 / (2 * items)) / (1 + z2 / items)
    half = Z / (1 + z2 / items) * math.sqrt(share * (1 - share) / items + z2 / (4 * items * items))
    # Exact at the ends, where rounding would leave 3e-18 for 0.
    return middle - half if successes else 0.0, middle + half if successes < items else 1.0


def bootstrap_ratio(
    numerators: Numbers, denominators: Numbers, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """Percentile interval of Σ numerators / Σ denominators, both (N,), under drawing items with replacement (Efron
    1979).

    Items are drawn whole, so a numerator stays with its denominator. None for fewer than two items, which say nothing
    of the spread.
    """
    return _percentiles(
        lambda rows: numerators[rows].sum() / denominators[rows].sum(), len(numerators), seed, resamples
    )


def bootstrap_difference(
    first: Numbers, second: Numbers, denominators: Numbers, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """Percentile interval of Σ second / Σ denominators − Σ first / Σ denominators over the same items, all (N,), drawn
    in pairs.

    What makes an item hard is hard for both, and so drops out: far narrower than the two intervals apart.
    """
    return bootstrap_ratio(second - first, denominators, seed, resamples)


def bootstrap(
    statistic: Callable[[Numbers], float], items: int, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """Percentile interval of any statistic of items: `statistic(rows)`, where rows (N,) index items drawn with
    replacement."""
    return _percentiles(statistic, items, seed, resamples)


def paired_p(first: Numbers, second: Numbers, seed: int, resamples: int = 10_000) -> float:
    """Two-sided p of "neither is better" over the same items, both (N,): of right and wrong answers McNemar's exact test
    (1947; binomial over the items on which they differ), of other figures signs of the differences drawn at random."""
    gain = second.astype(np.float64) - first.astype(np.float64)
    gain = gain[gain != 0]
    if not len(gain):
        return 1.0
    if set(np.abs(gain)) == {1.0}:
        n, few = len(gain), int(min((gain > 0).sum(), (gain < 0).sum()))
        log_half = -n * math.log(2)
        terms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + log_half for k in range(few + 1))
        return min(1.0, 2 * math.fsum(map(math.exp, terms)))
    generator, extreme = np.random.default_rng(seed), 0
    for _ in range(resamples):
        extreme += abs((gain * generator.choice((-1.0, 1.0), len(gain))).sum()) >= abs(gain.sum()) - 1e-12
    return (extreme + 1) / (resamples + 1)


def bootstrap_median(values: Numbers, seed: int, resamples: int = RESAMPLES) -> Interval | None:
    """Percentile interval of the median of repeated measurements (N,)."""
    return _percentiles(lambda rows: np.median(values[rows]), len(values), seed, resamples)


def difference(first: tuple[float, float, float], second: tuple[float, float, float]) -> Interval:
    """Interval of second − first from two independent (value, low, high) (Zou & Donner 2008, "Construction of
    confidence limits about effect measures", eq. 4 and 5): exact for normal values, and right for lopsided intervals
    such as Wilson's.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return b - a - math.hypot(b - b_low, a_high - a), b - a + math.hypot(b_high - b, a - a_low)


def _percentiles(statistic: Any, items: int, seed: int, resamples: int) -> Interval | None:
    """The 2.5% and 97.5% points of `statistic(rows)`, where rows (N,) index items drawn with replacement."""
    if items < 2:
        return None
    generator = np.random.default_rng(seed)
    values = [float(statistic(generator.integers(0, items, items))) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
