"""Fits find the exponents that a text was made with; ratios and repetition by hand."""

import numpy as np
import pytest

from lmforge.corpus.measure.lexical import fit_line, heaps, measured_growth, repetition, type_token, zipf


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
def test_zipf_finds_the_exponent(exponent: float) -> None:
    share = 1 / np.arange(1, 20_001) ** exponent
    counts = np.bincount(np.random.default_rng(0).choice(20_000, 1_000_000, p=share / share.sum()))
    figure = zipf(counts[counts > 0])
    assert figure["value"] == pytest.approx(exponent, rel=0.03)
    assert figure["explained"] > 0.99
    assert figure["points"][0] == [1, counts.max()]
    assert figure["points"] == sorted(figure["points"], key=lambda point: (point[0], -point[1]))


def test_heaps_finds_the_exponent() -> None:
    figure = heaps([(words, round(12 * words**0.6)) for words in range(1000, 100_000, 1000)])
    assert figure["value"] == pytest.approx(0.6, abs=0.001)
    assert figure["constant"] == pytest.approx(12, rel=0.01)


def test_growth_counts_distinct_words_in_order() -> None:
    assert measured_growth(["a b a c", "c d"])[-1] == (6, 4)
    figure = measured_growth([" ".join(f"w{number % 700}" for number in range(5000))])
    assert all(distinct == min(words, 700) for words, distinct in figure)
    assert measured_growth([]) == []


def test_types_against_tokens_in_runs_of_a_thousand() -> None:
    figure = type_token([" ".join(f"w{number % 250}" for number in range(3500))])
    assert figure["value"] == 0.25
    assert figure["spread"] == 0
    assert figure["runs"] == 3
    assert figure["whole_sample"] == 250 / 3500
    assert type_token(["few words"])["value"] is None


def test_repetition_by_hand() -> None:
    line = "the same line of forty characters, here."
    figure = repetition([f"{line}\nshort\n{line}\nanother line of text that stands once", line])
    once = len("another line of text that stands once")
    assert figure["repeated_lines"]["value"] == pytest.approx(2 * len(line) / (3 * len(line) + once))
    run = " ".join(f"w{number}" for number in range(20))
    figure = repetition([run, run])
    assert figure["repeated_word_runs"] | {"definition": ""} == {"value": 0.5, "sample_runs": 16, "definition": ""}
    assert repetition([])["repeated_lines"]["value"] is None


def test_a_line_through_nothing() -> None:
    assert fit_line([], []) == (0.0, 0.0, 0.0)
    assert fit_line([1.0], [3.0]) == (0.0, 3.0, 0.0)
    assert fit_line([0, 1, 2], [1, 3, 5]) == pytest.approx((2, 1, 1))


def test_running_text_without_spaces_has_words() -> None:
    text = "今天早上老人在河边修建了一座石桥孩子们收集了许多古老的地图" * 9
    assert type_token([text])["sample_words"] > 100
    assert repetition([text])["repeated_word_runs"]["value"] > 0.5
