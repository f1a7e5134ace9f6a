"""The corpus part: every kind of figure is shown, in words and plots; what is missing or odd is left out."""

import json
from pathlib import Path

import pytest

from lmforge.report.corpus import corpus
from lmforge.report.loaded import LoadedRun


def test_lengths_are_bars_in_order(finished_run: Path) -> None:
    page = corpus(LoadedRun(finished_run))
    assert page.index(">64 B<") < page.index(">1 KiB<") < page.index(">1 MiB<")
    assert "3.8%" in page  # 188 of 5,012 were too short


def test_every_kind_of_figure_is_shown(finished_run: Path) -> None:
    page = corpus(LoadedRun(finished_run))
    for wanted in (
        "words, order 3",
        "bytes, order 5",
        "compression bits per byte",
        "chao shen",
        "12.41",
        "the trained model",
        "5.11",
        "cited, not measured",
        "Vocabulary growth (Heaps)",
        "Words by rank (Zipf)",
        "1.043",
        "0.6120",
        "62.3%",
        "Flesch ease",
        "61.2",
        "oil, barrel, opec",
        "95.8% right (86.0% to 98.8%, 48 held-out documents",
        "Sherlock Holmes (41)",
        "1,312",
        "2,888",
        "16.7%",
        "97.0%",
        "391 pieces",
    ):
        assert wanted in page, wanted
    assert page.count("<figure>") == 5  # lengths, two of entropy, two of words
    assert page.index("<b>43</b>") < page.index("<b>3</b>")  # what was told right stands out


def test_the_models_bits_per_word_follow_from_its_bits_per_byte(finished_run: Path) -> None:
    assert ">9.948<" in corpus(LoadedRun(finished_run))  # 1.658 bits per byte × 6 bytes a word
    (finished_run / "scores/bits_per_byte.json").unlink()
    assert "the trained model" not in corpus(LoadedRun(finished_run))


@pytest.mark.parametrize(
    "lost", ["entropy", "heaps", "type_token", "repetition", "readability", "languages", "entities", "topics", "genres"]
)
def test_what_is_missing_is_left_out(finished_run: Path, lost: str) -> None:
    path = finished_run / "corpus/statistics.json"
    found = json.loads(path.read_text())
    for odd in (
        None,
        [],
        "text",
        {"points": "no", "topics": [3], "shares": {"en": "much"}, "confusion": {"a": 1}, "person": {"top": [1]}},
    ):
        found["analysis"][lost] = odd
        path.write_text(json.dumps(found))
        assert "Split by hash" in corpus(LoadedRun(finished_run))


def test_a_corpus_without_analysis_is_shown_as_before(finished_run: Path) -> None:
    path = finished_run / "corpus/statistics.json"
    found = json.loads(path.read_text())
    for name in ("analysis", "zipf", "vocabulary_growth"):
        del found[name]
    path.write_text(json.dumps(found))
    page = corpus(LoadedRun(finished_run))
    assert "compression bits per byte" in page
    assert "Topics" not in page
    assert "Heaps" not in page
