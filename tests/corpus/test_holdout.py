"""Documents that stand in training too are not held out; what is left of shared runs is marked."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.build import build_corpus, read_documents
from lmforge.corpus.holdout import LEAST_HELD, MOST_SHARE, Wanted, choose, marked_by, wanted_of
from lmforge.corpus.overlap.leaks import WINDOW, Windows
from tests.corpus.overlap.test_leaks import plain, runs_of
from tests.corpus.test_build import jsonl, recipe


def prose(seed: int, sentences: int = 40) -> str:
    """Sentences of words that no other seed has in this order."""
    rng = random.Random(seed)
    words = ["river", "stone", "baker", "window", "garden", "winter", "letter", "the", "a", "of", "and", "went", "saw"]
    return "\n".join(
        " ".join(rng.choices(words, k=12)).capitalize() + f" {rng.randrange(10**6)}." for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in which every fifth document copies most of its neighbour, and every seventh a paragraph of it."""
    texts: list[str] = []
    for number in range(600):
        text = prose(number)
        if number % 5 == 4:
            text = prose(number, 30) + "\n" + "\n".join(texts[-1].split("\n")[5:25])
        elif number % 7 == 6:
            text += "\n" + "\n".join(texts[-1].split("\n")[:3])
        texts.append(text)
    folder = tmp_path_factory.mktemp("held")
    made = recipe(jsonl(folder / "a.jsonl", texts), holdout=0.2, near_duplicates=1.0, repeated_lines=0)
    build_corpus(made, folder / "corpus")
    return folder / "corpus"


def test_no_held_out_document_stands_in_training_and_spans_are_exact(built: Path) -> None:
    training = runs_of([document["text"] for document in read_documents(built, "train")], WINDOW)
    figures = json.loads((built / "statistics.json").read_text())["held_out"]
    spans = 0
    for split in ("valid", "test"):
        documents = list(read_documents(built, split))
        leaked = 0
        for document in documents:
            expected = plain(document["text"], training, WINDOW)
            assert [tuple(span) for span in document["meta"].get("leaked", [])] == expected
            length = sum(stop - start for start, stop in expected)
            assert length <= 0.1 * len(document["text"])
            leaked, spans = leaked + length, spans + len(expected)
        assert figures[split]["documents"] == len(documents)
        assert figures[split]["leaked_characters"] == leaked
        assert figures[split]["leaked_share"] == leaked / sum(len(each["text"]) for each in documents)
    assert spans > 3  # there was something to mark …
    assert figures["moved_to_training"] > 3  # … and to move
    assert not any("leaked" in document["meta"] for document in read_documents(built, "train"))


def test_validation_has_enough_documents_where_the_corpus_has_them(built: Path) -> None:
    assert len(list(read_documents(built, "valid"))) >= min(LEAST_HELD, int(MOST_SHARE * 600))


def test_all_documents_copies_of_one_another(tmp_path: Path) -> None:
    shared = prose(0, 60)
    texts = [f"{shared}\n{prose(number, 8)}" for number in range(1, 30)]
    made = recipe(jsonl(tmp_path / "a.jsonl", texts), holdout=0.2, near_duplicates=1.0, repeated_lines=0)
    figures = build_corpus(made, tmp_path / "corpus")
    assert figures["held_out"]["all_candidates_leak"]
    assert figures["held_out"]["valid"]["leaked_share"] > 0.5  # said, since it cannot be helped
    assert all(figures["splits"][split]["documents"] for split in ("train", "valid", "test"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.5))
def test_the_choice_leaves_no_leaked_document_and_parts_no_group(seed: int, most: float) -> None:
    rng = random.Random(seed)
    texts = [prose(rng.randrange(12), 3) + prose(100 + number, rng.randrange(1, 6)) for number in range(24)]
    places = np.sort(np.array([rng.choice([rng.random(), 0.3]) for _ in texts]))
    sizes = np.array([len(text) for text in texts])
    windows = Windows.of(texts)
    outside = np.zeros(windows.table.size, np.uint8)
    windows.mark(prose(rng.randrange(12), 3), outside)
    wanted = {"valid": Wanted(0.05, 3, 10**6), "test": Wanted(0.2, 4, 10**6)}
    chosen = choose(windows, outside, places, sizes, wanted, most)
    marks = marked_by(windows, outside, [number for number in range(24) if number not in chosen.splits])
    if not chosen.forced:
        assert all(windows.share(number, marks) <= most for number in chosen.splits)
    of_place = {place: {chosen.splits.get(n) for n in range(24) if places[n] == place} for place in set(places)}
    assert all(len(splits) == 1 for splits in of_place.values())
    assert set(chosen.splits.values()) == {"valid", "test"} or len(set(places)) < 2


def test_needs_grow_with_the_corpus_up_to_their_least() -> None:
    assert wanted_of(0.05, 100, 10**5)["valid"] == Wanted(0.05 * 0.2, 10, 10**4)
    assert wanted_of(0.05, 10**6, 10**9)["valid"][1:] == (LEAST_HELD, 10**6)
    least = [wanted_of(0.05, count, count * 1000)["valid"].documents for count in (3, 30, 300, 3000)]
    assert all(a <= b for a, b in itertools.pairwise(least))
    assert Counter(least)[1] == 1
