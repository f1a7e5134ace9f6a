"""The lexicon finds words of one kind; augmentation changes what it is asked to, and keeps the text's form."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.synthesize.augment import Lexicon, Rates, augment
from lmforge.corpus.synthesize.noise import rng_of, words

COLOURS, ANIMALS, VERBS = (
    ["red", "green", "blue", "yellow"],
    ["horse", "sheep", "rabbit", "goose"],
    ["jumps", "walks", "runs", "sleeps"],
)
OFF = {"synonym": 0.0, "swap": 0.0, "delete": 0.0, "insert": 0.0}


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    rng = random.Random(1)
    texts = [
        f"The {rng.choice(COLOURS)} {rng.choice(ANIMALS)} {rng.choice(VERBS)} over a {rng.choice(COLOURS)} "
        f"{rng.choice(ANIMALS)} once more."
        for _ in range(800)
    ]
    assert Lexicon.build(texts).similar == Lexicon.build(iter(texts)).similar
    return Lexicon.build(texts)


def test_similar_words_are_of_one_kind(lexicon: Lexicon) -> None:
    for kind in (COLOURS, ANIMALS, VERBS):
        for word in kind:
            assert lexicon.similar[word][0] in set(kind) - {word}
            assert len(set(lexicon.similar[word]) - set(kind)) <= 1  # fifteen words have few others to be like
    assert "a" not in lexicon.similar


def test_capitals_are_kept(lexicon: Lexicon) -> None:
    assert lexicon.like("Horse", rng_of(1, 1)).title() in map(str.title, ANIMALS)  # type: ignore[union-attr]
    assert lexicon.like("RED", rng_of(1, 1)).isupper()  # type: ignore[union-attr]
    assert lexicon.like("unheard", rng_of(1, 1)) is None


@given(st.text(max_size=200), st.integers(0, 2**63))
def test_rates_of_nought_change_nothing(text: str, index: int) -> None:
    assert augment(text, Rates(**OFF), Lexicon({}), rng_of(1, index)) == text


@given(st.text(alphabet="ab .,\n", max_size=200), st.integers(0, 2**63))
def test_swapping_keeps_the_words_and_the_layout(text: str, index: int) -> None:
    swapped = augment(text, Rates(**(OFF | {"swap": 0.5})), Lexicon({}), rng_of(1, index))
    assert sorted(swapped.split()) == sorted(text.split())
    assert swapped.count("\n") == text.count("\n")


def test_each_rate_is_what_was_asked(lexicon: Lexicon) -> None:
    text = " ".join(random.Random(2).choices(COLOURS + ANIMALS, k=4000))
    for what in ("synonym", "delete", "insert"):
        changed = augment(text, Rates(**(OFF | {what: 0.1})), lexicon, rng_of(1, 0))
        count = len(changed.split())
        if what == "synonym":
            assert count == 4000
            assert sum(a != b for a, b in zip(words(text), words(changed), strict=True)) == pytest.approx(400, abs=60)
        else:
            assert count == pytest.approx(3600 if what == "delete" else 4400, abs=60)


@given(st.text(max_size=300), st.integers(0, 2**63))
def test_the_same_stream_gives_the_same_text(text: str, index: int) -> None:
    lexicon = Lexicon({"a": ("b",), "the": ("one", "some")})
    assert augment(text, Rates(), lexicon, rng_of(4, index)) == augment(text, Rates(), lexicon, rng_of(4, index))


def test_a_tiny_corpus_has_an_empty_lexicon() -> None:
    assert Lexicon.build([]).similar == {}
    assert Lexicon.build(["one two", ""]).similar == {}
