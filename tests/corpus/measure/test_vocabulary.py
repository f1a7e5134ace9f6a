"""The same figures for any split of the words; sampling beyond the bound is right on average and keeps the frequent
words."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.measure import vocabulary
from lmforge.corpus.measure.entropy import grassberger
from lmforge.corpus.measure.vocabulary import WordCounts, growth

words = st.lists(st.integers(0, 400).map(lambda rank: f"w{rank * rank % 397}"), max_size=300)


def counted(parts: list[list[str]]) -> WordCounts:
    made = WordCounts()
    for part in parts:
        made.add(part)
    return made


@given(st.lists(words, min_size=1, max_size=6), st.randoms(use_true_random=False), st.sampled_from([50, 100, 1_000]))
@settings(deadline=None, max_examples=60)
def test_any_split_and_order_gives_the_same_state(parts: list[list[str]], rng: random.Random, most: int) -> None:
    before = vocabulary.MOST_DISTINCT, vocabulary.COLUMNS
    vocabulary.MOST_DISTINCT, vocabulary.COLUMNS = most, 64
    try:
        whole = counted(parts)
        tasks = [[] for _ in range(3)]
        for part in rng.sample(parts, len(parts)):
            rng.choice(tasks).append(part)
        partial = [WordCounts.from_state(counted(task).state()) for task in tasks]
        rng.shuffle(partial)
        merged = WordCounts()
        for one in partial:
            merged.merge(one)
        assert merged.state() == whole.state()
        assert merged.top(20, ["w1", "w4"]) == whole.top(20, ["w1", "w4"])
        assert len(whole.counts) <= most + 300
    finally:
        vocabulary.MOST_DISTINCT, vocabulary.COLUMNS = before


def zipf_words(amount: int, symbols: int) -> list[str]:
    share = 1 / np.arange(1, symbols + 1)
    return [f"word{rank}" for rank in np.random.default_rng(0).choice(symbols, amount, p=share / share.sum())]


def test_sampled_figures_come_close_to_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = zipf_words(300_000, 100_000)
    exact = Counter(text)
    monkeypatch.setattr(vocabulary, "MOST_DISTINCT", 8_000)
    sampled = counted([text[start : start + 1000] for start in range(0, len(text), 1000)])
    assert sampled.level >= 3
    assert len(sampled.counts) <= 9_000
    candidates = set(text[:50_000])
    counts, weights = sampled.spectrum(candidates)
    assert counts @ weights == pytest.approx(len(text), rel=0.02)
    assert weights.sum() == pytest.approx(len(exact), rel=0.05)
    assert grassberger(counts, weights) == pytest.approx(grassberger(list(exact.values())), rel=0.01)
    top = sampled.top(20, candidates)
    assert [word for word, _ in top[:10]] == [word for word, _ in exact.most_common(10)]
    assert all(count == pytest.approx(exact[word], rel=0.02) for word, count in top)


def test_below_the_bound_everything_is_exact() -> None:
    text = zipf_words(20_000, 5_000)
    counts, weights = counted([text]).spectrum()
    assert counts.tolist() == sorted(Counter(text).values())
    assert set(weights) == {1.0}


def test_growth_is_what_a_random_part_holds() -> None:
    text = zipf_words(64_000, 20_000)
    points = growth(*counted([text]).spectrum())
    assert points[-1] == {"words": 64_000, "distinct": len(set(text))}
    rng = random.Random(0)
    for point in points[-6:-1]:
        assert len(set(rng.sample(text, point["words"]))) == pytest.approx(point["distinct"], rel=0.02)
    assert growth(*WordCounts().spectrum()) == []
