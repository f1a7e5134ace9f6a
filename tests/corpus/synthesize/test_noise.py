"""Denoising objectives: deterministic, nothing lost, the target alone counts, the rates are those of the papers."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.synthesize import noise
from lmforge.corpus.synthesize.noise import (
    DENOISERS,
    MASK,
    OBJECTIVES,
    Mark,
    infill,
    mixture,
    prefix,
    restore,
    rng_of,
    span_mask,
    words,
)

TEXT = st.text(max_size=200)
IDS = st.lists(st.integers(0, 999), max_size=120)
SEED, INDEX = st.integers(0, 2**32), st.integers(0, 2**63)


@given(TEXT)
def test_words_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text


def test_a_text_without_blanks_is_masked_in_runs_and_its_sentences_permuted() -> None:
    text = "我买了一本书。他看了很久！你说什么？" * 5
    pair = span_mask(words(text), rng_of(1, 1))
    assert restore(pair) == words(text)
    assert len([unit for unit in pair.input if isinstance(unit, Mark)]) == 4  # 15% of 75 signs in runs of 3
    shuffled = OBJECTIVES["permute"](words(text), rng_of(1, 1)).input
    assert "".join(shuffled) != text
    assert sorted("".join(shuffled)) == sorted(text)
    assert "买了一本书。" in "".join(shuffled)


@given(IDS, SEED, INDEX, st.floats(0.01, 0.9), st.floats(1, 70))
def test_span_masking_loses_nothing(ids: list[int], seed: int, index: int, share: float, mean: float) -> None:
    pair = span_mask(ids, rng_of(seed, index), share, mean)
    assert pair == span_mask(ids, rng_of(seed, index), share, mean)
    assert restore(pair) == ids
    marks = [unit for unit in pair.target if isinstance(unit, Mark)]
    assert marks == [Mark(str(number)) for number in range(len(marks))]
    assert [unit for unit in pair.input if isinstance(unit, Mark)] == marks[:-1]


@given(IDS, SEED, INDEX)
def test_prefix_and_mixture_lose_nothing(ids: list[int], seed: int, index: int) -> None:
    assert restore(prefix(ids, rng_of(seed, index))) == ids
    mixed = mixture(ids, rng_of(seed, index))
    assert mixed.input[0] in {Mark(mode) for mode, _, _ in DENOISERS}
    assert restore(mixed) == ids


@given(st.integers(2, 400), st.floats(0.05, 0.6), st.floats(1, 20), SEED)
def test_gaps_take_the_share_in_runs_of_the_mean(length: int, share: float, mean: float, seed: int) -> None:
    spans = noise.gaps(length, share, mean, rng_of(seed, 0))
    taken = sum(end - start for start, end in spans)
    assert taken == min(max(round(length * share), 1), length - 1)
    assert spans[0][0] > 0
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    if length > 100 and taken >= 20 and taken / mean + taken < length:
        assert taken / len(spans) == pytest.approx(mean, rel=0.5)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@given(text=TEXT, seed=SEED, index=INDEX)
@settings(max_examples=40)
def test_objectives_are_deterministic_and_render_into_spans(name: str, text: str, seed: int, index: int) -> None:
    units = words(text)
    pair = OBJECTIVES[name](units, rng_of(seed, index))
    assert pair == OBJECTIVES[name](units, rng_of(seed, index))
    assert units == words(text)  # the input was not changed
    rendered, [[start, end]] = noise.render(pair)
    assert 0 < start < end == len(rendered)
    assert rendered[:start].endswith("\n<fill>")
    if name not in ("span_mask", "prefix", "mixture"):
        assert pair.target == units
        assert rendered[start:end].strip() == text.strip()


def test_shares_over_many_sequences() -> None:
    units = list(range(1000))
    rng = rng_of(1, 1)
    assert sum(unit is MASK for unit in noise.token_mask(units, rng).input) == 150
    assert len(OBJECTIVES["delete"](units, rng).input) == pytest.approx(850, abs=60)
    filled = [infill(units, rng) for _ in range(20)]
    gone = np.mean([1000 - sum(unit is not MASK for unit in pair.input) for pair in filled])
    assert gone == pytest.approx(270, abs=40)  # 30%, less where runs fall upon each other
    runs = [len(infill(units, rng, 0.3).input) for _ in range(3)]
    assert all(run < 1000 for run in runs)
    ends = [len(prefix(units, rng).target) - 2 for _ in range(400)]
    assert np.mean(ends) == pytest.approx(250, rel=0.1)
    modes = [mixture(units, rng).input[0].name for _ in range(700)]
    assert modes.count("R") == pytest.approx(200, abs=50)
    assert modes.count("S") == pytest.approx(100, abs=40)


def test_sentences_and_rotation_keep_every_word() -> None:
    units = words("One is here. Two came! Was three late? Four.")
    shuffled = noise.permute(units, rng_of(3, 3)).input
    assert sorted(shuffled) == sorted(units)
    assert "".join(shuffled) != "".join(units)
    assert {"".join(shuffled).count(part) for part in ("Two came!", "Was three late?")} == {1}
    turned = noise.rotate(units, rng_of(1, 2)).input
    at = turned.index("One")
    assert turned[at:] + turned[:at] == units


def test_typing_errors_are_few_and_in_letters() -> None:
    text = "the quick brown fox jumps over 1234 lazy dogs " * 50
    noisy = "".join(OBJECTIVES["characters"](words(text), rng_of(1, 1)).input)
    assert noisy.count("1234") == 50
    assert 0.02 < sum(a != b for a, b in zip(words(text), words(noisy), strict=False)) / 450 < 0.4


def test_ids_for_the_ordinary_causal_loss() -> None:
    pair = span_mask([5, 6, 7, 8, 9], rng_of(0, 0), 0.4, 2)
    marks = {"0": 100, "1": 101}
    tokens, counts = noise.on_ids(pair, marks, [99])
    cut = tokens.index(99)
    assert counts == [False] * (cut + 1) + [True] * (len(tokens) - cut - 1)
    assert tokens[cut + 1] == 100
    assert tokens[-1] == 101


@pytest.mark.parametrize(
    ("text", "holds"), [("a < b", False), ("<0> x", True), ("<fill>", True), ("<R>", True), ("<b>bold</b>", False)]
)
def test_texts_that_hold_marks_are_told(text: str, holds: bool) -> None:
    assert noise.has_marks(text) == holds


def test_a_mark_is_no_word() -> None:
    odd: list[Any] = ["<0>", " b"]
    assert restore(span_mask(odd, rng_of(0, 1))) == odd
