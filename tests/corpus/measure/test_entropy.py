"""Estimators against sources whose entropy is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.measure.entropy import chao_shen, grassberger, miller_madow, plug_in

ESTIMATORS = (plug_in, miller_madow, grassberger, chao_shen)


def zipf(symbols: int, exponent: float = 1.0) -> tuple[np.ndarray, float]:
    """Shares p ∝ 1/rank^exponent and their entropy in bits."""
    share = 1 / np.arange(1, symbols + 1) ** exponent
    share /= share.sum()
    return share, float(-(share * np.log2(share)).sum())


def drawn(share: np.ndarray, amount: int, seed: int) -> np.ndarray:
    return np.bincount(np.random.default_rng(seed).choice(len(share), amount, p=share), minlength=len(share))


@pytest.mark.parametrize(
    "share",
    [np.full(2, 0.5), np.array([0.9, 0.1]), np.full(256, 1 / 256), zipf(256)[0]],
    ids=["coin", "bent", "flat", "zipf"],
)
@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_known_sources_of_bytes_within_one_percent(estimate: object, share: np.ndarray) -> None:
    truth = float(-(share * np.log2(share)).sum())
    assert callable(estimate)
    assert estimate(drawn(share, 100_000, 1)) == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("symbols", [10_000, 100_000])
def test_a_zipf_source_of_words_within_one_percent(symbols: int) -> None:
    share, truth = zipf(symbols)
    counts = drawn(share, 500_000, 2)
    assert grassberger(counts) == pytest.approx(truth, rel=0.01)
    assert abs(grassberger(counts) - truth) <= abs(miller_madow(counts) - truth) + 0.005 * truth
    assert plug_in(counts) < miller_madow(counts)


def test_chao_shen_stands_for_what_was_never_seen() -> None:
    share, truth = zipf(100_000)
    counts = drawn(share, 100_000, 3)  # three words of four were not seen
    assert abs(chao_shen(counts) - truth) < 0.01 * truth
    assert truth - grassberger(counts) > 0.01 * truth


def test_exact_values() -> None:
    for estimate in ESTIMATORS:
        assert estimate([]) == 0
        assert estimate([5, 0]) == 0
    assert plug_in([2, 2, 0]) == 1
    assert miller_madow([2, 2, 0]) == pytest.approx(1 + 1 / (2 * 4 * math.log(2)))
    psi = 0.42278433509846714, 0.03648997397857652, -0.5772156649015329  # ψ(2), ψ(3/2), ψ(1)
    assert grassberger([2, 2]) == pytest.approx((math.log(4) - psi[0] - 0.5 * (psi[1] - psi[2])) / math.log(2))
    cover = 1 - 1 / 3
    terms = [-(p := cover * n / 3) * math.log2(p) / (1 - (1 - p) ** 3) for n in (1, 2)]
    assert chao_shen([1, 2]) == pytest.approx(sum(terms))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5))
def test_a_weight_is_so_many_equal_counts(counts: list[int], weight: int) -> None:
    for estimate in ESTIMATORS:
        assert estimate(counts, [weight] * len(counts)) == pytest.approx(estimate(counts * weight), abs=1e-9)
        assert estimate(counts) >= 0
    assert plug_in(counts) <= math.log2(len(counts)) + 1e-9
