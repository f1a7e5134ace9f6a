"""A classifier that learns what can be learned, and says so with an interval."""

import numpy as np
import pytest

from lmforge.corpus.measure.genres import confusion, genre_figures, predict
from lmforge.corpus.measure.sampling import SampledPiece
from lmforge.intervals import wilson

WORDS = {"books": ["whale", "ship", "captain", "sea"], "code": ["def", "return", "import", "class"]}


def piece(genre: str, number: int, seed: int, words: list[str]) -> SampledPiece:
    return SampledPiece(
        f"{seed}-{genre}-{number}",
        genre,
        " ".join(np.random.default_rng([seed, number]).choice([*words, "the", "of", "and"], 60)),
    )


def test_genres_that_differ_are_told_apart_and_shuffled_labels_are_not() -> None:
    train = [piece(genre, number, 0, words) for genre, words in WORDS.items() for number in range(30)]
    held_out = [piece(genre, number, 1, words) for genre, words in WORDS.items() for number in range(20)]
    figures = genre_figures(train, held_out)
    assert figures["accuracy"] == 1
    assert (figures["low"], figures["high"]) == wilson(40, 40)
    assert figures["confusion"] == {"books": {"books": 20, "code": 0}, "code": {"books": 0, "code": 20}}
    assert figures["most_frequent"] == 0.5
    shuffled = [SampledPiece(p.document, ["books", "code"][i % 2], p.text) for i, p in enumerate(train)]
    assert genre_figures(shuffled, held_out)["low"] < 0.5 < genre_figures(shuffled, held_out)["high"]


def test_one_piece_of_a_document_is_tested() -> None:
    train = [piece(genre, number, 0, words) for genre, words in WORDS.items() for number in range(30)]
    held_out = [SampledPiece("one", "books", "whale ship captain")] * 5
    assert genre_figures(train, held_out)["sample_documents"] == 1


@pytest.mark.parametrize("train", [[], [SampledPiece("a", "books", "text")] * 40])
def test_one_genre_or_nothing_has_no_accuracy(train: list[SampledPiece]) -> None:
    assert genre_figures(train, [SampledPiece("b", "books", "text")])["accuracy"] is None


def test_texts_without_words() -> None:
    assert predict(["", "", ""], ["a", "a", "b"], ["x"]) == ["a"]


def test_confusion_by_hand() -> None:
    figures = confusion(["a", "a", "b"], ["a", "b", "b"])
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 1}}
