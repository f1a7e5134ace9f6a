"""Formulas against hand counts."""

import pytest

from lmforge.corpus.measure.readability import readability, syllables


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("make", 1),
        ("table", 2),
        ("wanted", 2),
        ("asked", 1),
        ("the", 1),
        ("beautiful", 3),
        ("horses", 2),
        ("boxes", 2),
        ("reading", 2),
        ("people", 2),
        ("takes", 1),
        ("rhythm", 1),
    ],
)
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


def test_formulas_by_hand() -> None:
    figures = readability(["The cat sat on the mat. The dog ran!"])  # 9 words, 2 sentences, 9 syllables, 26 letters
    assert (figures["sample_words"], figures["sample_sentences"]) == (9, 2)
    assert figures["words_per_sentence"] == 4.5
    assert figures["syllables_per_word"] == 1
    assert figures["flesch_reading_ease"] == pytest.approx(206.835 - 1.015 * 4.5 - 84.6)
    assert figures["flesch_kincaid_grade"] == pytest.approx(0.39 * 4.5 + 11.8 - 15.59)
    assert figures["automated_readability_index"] == pytest.approx(4.71 * 26 / 9 + 0.5 * 4.5 - 21.43)


def test_harder_prose_scores_harder() -> None:
    easy = readability(["The sun was warm. The boy had a dog. They ran in the park all day."])
    hard = readability(
        [
            "Notwithstanding considerable methodological heterogeneity, contemporary investigations corroborate the "
            "hypothesis."
        ]
    )
    assert easy["flesch_reading_ease"] > 90 > 0 > hard["flesch_reading_ease"]
    assert easy["flesch_kincaid_grade"] < 3 < 15 < hard["flesch_kincaid_grade"]


def test_a_heading_without_a_full_stop_is_a_sentence_and_nothing_is_none() -> None:
    assert readability(["A heading\n\nAnd a sentence under it."])["sample_sentences"] == 2
    assert readability(["123 456", ""])["flesch_reading_ease"] is None
