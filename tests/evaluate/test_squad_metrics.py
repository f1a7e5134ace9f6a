"""SQuAD 2.0's official figures: a case worked out by hand after the published algorithm, and what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.evaluate.squad_metrics import best_threshold, exact_of, f1_of, normalised, official, raw_scores

GOLD = {
    "a": ["The Eiffel Tower", "Eiffel Tower, Paris"],  # exact
    "b": ["in October 1973"],  # 2 of 2 words are among 3: F1 0.8
    "c": ["blue whale"],  # answered with nothing
    "d": [],  # rightly nothing
    "e": [],  # wrongly something
    "f": ["a"],  # normalises to nothing: nothing is right
}
GIVEN = {"a": "eiffel  tower!", "b": "October, 1973", "c": "", "d": "", "e": "42", "f": "the"}
NONE = {"a": 0.1, "b": 0.3, "c": 0.9, "d": 0.95, "e": 0.6, "f": 0.2}


def test_a_case_by_hand() -> None:
    assert raw_scores(GOLD, GIVEN) == {
        "a": (1, 1), "b": (0, pytest.approx(0.8)), "c": (0, 0), "d": (1, 1), "e": (0, 0), "f": (1, 1),
    }  # fmt: skip
    figures = official(GOLD, GIVEN)
    assert figures == pytest.approx(
        {
            "exact": 50, "f1": 100 * 3.8 / 6, "total": 6,
            "HasAns_exact": 50, "HasAns_f1": 70, "HasAns_total": 4,
            "NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2,
        }
    )  # fmt: skip


def test_thresholds_by_hand() -> None:
    # from two without answers: a +1, f +1 (at 0.2), b +0 exact or +0.8 F1 (at 0.3), e −1, c 0, d 0
    figures = official(GOLD, GIVEN, NONE)
    assert (figures["best_exact"], figures["best_exact_thresh"]) == (pytest.approx(100 * 4 / 6), 0.2)
    assert (figures["best_f1"], figures["best_f1_thresh"]) == (pytest.approx(100 * 4.8 / 6), 0.3)
    cut = official(GOLD, GIVEN, NONE, threshold=0.3)
    assert cut["f1"] == pytest.approx(figures["best_f1"])
    assert (cut["NoAns_f1"], cut["HasAns_f1"]) == (100, pytest.approx(70))
    strict = official(GOLD, GIVEN, NONE, threshold=0.1)  # f, without a word in its answer, has one all the same
    assert strict["HasAns_f1"] == 25


def test_normalisation_is_the_scripts() -> None:
    assert normalised("An  apple, the U.S.A. and a-theatre") == "apple usa and atheatre"
    assert normalised("1990–1995") == "1990–1995"  # only ASCII's punctuation
    assert f1_of("a b", "") == 0
    assert f1_of("the", "an") == 1
    assert f1_of("x x y", "x") == pytest.approx(0.5)
    assert exact_of("The cat.", "cat") == 1


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="question b: no prediction"):
        official({"a": [], "b": ["x"]}, {"a": ""})
    with pytest.raises(InputError, match="question a: no probability"):
        official({"a": []}, {"a": ""}, {})
    with pytest.raises(InputError, match="no questions"):
        official({}, {})


WORDS = st.lists(st.sampled_from(["a", "the", "red", "Red", "fox", "x.", "1973"]), max_size=4).map(" ".join)
CASES = st.lists(st.tuples(st.lists(WORDS, max_size=3), WORDS, st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_f1_is_symmetric_and_bounded_by_exact(one: str, other: str) -> None:
    assert f1_of(one, other) == pytest.approx(f1_of(other, one))
    assert exact_of(one, other) <= f1_of(one, other) <= 1
    assert f1_of(one, one) == 1


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_the_best_threshold_is_reached_and_nothing_is_above_it(cases: list[tuple[list[str], str, float]]) -> None:
    """With probabilities that differ, the reported figure is what the script gives at that threshold, where a question
    without an answer that was answered with nothing costs nothing."""
    gold = {str(number): [each for each in case[0] if normalised(each)] for number, case in enumerate(cases)}
    given_ = {str(number): case[1] for number, case in enumerate(cases)}
    none = {str(number): case[2] + number / 1000 + 0.001 for number, case in enumerate(cases)}
    # as in the script, predictions that normalise to nothing but are not empty count as answers
    given_ = {name: text if normalised(text) else "" for name, text in given_.items()}
    best = official(gold, given_, none)
    for metric in ("exact", "f1"):
        at = official(gold, given_, none, best[f"best_{metric}_thresh"])
        assert at[metric] == pytest.approx(best[f"best_{metric}"])
        for threshold in (-1.0, *none.values()):
            assert official(gold, given_, none, threshold)[metric] <= best[f"best_{metric}"] + 1e-9
    counts = best.get("HasAns_total", 0) + best.get("NoAns_total", 0)
    assert counts == best["total"] == len(cases)
    weighted = sum(best.get(f"{kind}_f1", 0) * best.get(f"{kind}_total", 0) for kind in ("HasAns", "NoAns"))
    assert weighted / len(cases) == pytest.approx(best["f1"])


def test_nothing_better_than_no_answer_leaves_the_threshold_at_zero() -> None:
    gold = {"a": [], "b": ["x"]}
    scores = {"a": 0.0, "b": 0.0}
    assert best_threshold(scores, {"a": "y", "b": "y"}, {"a": 0.1, "b": 0.2}, gold) == (50, 0.0)
