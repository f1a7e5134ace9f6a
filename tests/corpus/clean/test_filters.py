"""why_dropped and prepare: each reason by a text that has it."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.clean import filters
from lmforge.corpus.clean.filters import (
    duplicate_line_share,
    duplicate_ngram_share,
    filters_fingerprint,
    filters_report,
    prepare,
    why_dropped,
)
from lmforge.corpus.sources.document import Document
from lmforge.errors import InputError
from lmforge.recipe import Corpus, Perplexity, Quality
from tests.corpus.test_normalise import AWKWARD

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen while nobody looked up.\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("short", "too_short"),
        (PROSE * 4 + "x" * 1_000_000, "too_long"),
        ("0123456789 +-*/ 42 " * 10, "mostly_not_text"),
        ("\ufffd" * 10 + PROSE, "mostly_not_text"),
        ("\n".join(f"{word} line of some length" for word in ["one", "two"] * 30), "duplicate_lines"),
        (" ".join(PROSE.split() * 20), "duplicate_ngrams"),
        (PROSE, None),
        ("Это совсем обычный русский текст, в котором нет ничего лишнего и ничего странного, честное слово.", None),
    ],
)
def test_why_dropped_names_the_reason(text: str, reason: str | None) -> None:
    assert why_dropped(text, Corpus()) == reason


def test_duplicate_shares_are_the_defined_ones() -> None:
    lines = [f"line {number}" for number in range(15)]
    assert duplicate_line_share("\n".join(lines + lines[:5])) == pytest.approx(5 / 20)
    words = [f"w{number:03d}" for number in range(40)]
    assert duplicate_ngram_share(" ".join(words)) == 0
    assert duplicate_ngram_share(" ".join(words + words[5:17])) == pytest.approx(12 / 52)  # three runs, each word once
    assert duplicate_ngram_share(" ".join(words + words[5:14])) == 0  # nine words are no run of ten


@given(st.lists(st.sampled_from("abc"), min_size=20, max_size=120))
@settings(max_examples=100, deadline=None)
def test_duplicate_ngrams_equal_the_plain_definition(words: list[str]) -> None:
    seen: set[tuple[str, ...]] = set()
    inside: set[int] = set()
    for start in range(len(words) - 9):
        run = tuple(words[start : start + 10])
        if run in seen:
            inside.update(range(start, start + 10))
        seen.add(run)
    assert duplicate_ngram_share(" ".join(words)) == pytest.approx(len(inside) / len(words))


# prepare


def document(text: str, genre: str = "web", **meta: str) -> Document:
    return {"id": "1", "text": text, "source": "s", "genre": genre, "meta": dict(meta)}


ARTICLE = "\n".join(
    (
        "The old forge stood at the end of the village, where the road turned down to the river and the mill.",
        "Every morning the smith lit the fire with dry birch, and by noon the iron was bright enough to bend.",
        "Nobody remembered who had built the place, but the stones over the door were worn smooth with age.",
        "In winter children came to warm their hands, and they would stay until someone called them home.",
        "He did not talk much, yet he knew the name of each horse that he had shod in forty years of work.",
    )
)


def test_prepare_cleans_masks_and_keeps_the_rest() -> None:
    notices: Counter[str] = Counter()
    given = document(ARTICLE + "\r\nWrite to a.smith@forge.org.\nThis site uses cookies.\n", url="u")
    prepared, reason = prepare(given, Corpus(), notices)
    assert reason is None
    assert prepared == {**given, "text": ARTICLE + "\nWrite to [email].\n"}
    assert notices == {"masked: email": 1, "boilerplate lines removed": 1}
    assert given["text"].endswith("cookies.\n")  # what is given is not changed


BIRDS = ("larks", "finches", "robins", "wrens", "crows", "ravens", "doves", "gulls", "owls", "hawks", "terns")
STOPLESS = " ".join(
    [
        "Iron melts, steel bends, fire burns, smiths labour, winters pass, rivers freeze.",
        "Horses trot through snow, wagons creak, dogs bark.",
        *(f"{bird} sang before breakfast, {bird} sang after dinner." for bird in BIRDS),
    ]
)


@pytest.mark.parametrize(
    ("text", "genre", "more", "reason"),
    [
        (ARTICLE, "web", {}, None),
        ("short", "web", {}, "too_short"),
        (PROSE * 5, "web", {}, "repeated_lines"),
        (ARTICLE.replace("forge", "lorem ipsum"), "web", {}, "c4_lorem_ipsum"),
        (ARTICLE.replace("forge", "lorem ipsum"), "books", {}, None),
        (ARTICLE + "{", "web", {}, "c4_curly_bracket"),
        (ARTICLE + "{", "web", {"rules": ()}, None),
        (ARTICLE + "{", "news", {}, None),
        ("x = {1: 2}\n" + "def f(a):\n    return a + 1\n" * 3, "code", {}, None),
        (ARTICLE, "web", {"languages": ("de",)}, "other_language"),
        (ARTICLE, "web", {"languages": ("de", "en")}, None),
        (ARTICLE, "code", {"languages": ("de",)}, None),
        (STOPLESS, "news", {"rules": ("gopher",)}, "gopher_stop_words"),
        (
            " ".join(
                f"Der alte Schmied sah am {n}. Abend aus dem {n * 7}. Fenster, wie {n * 3} Kinder zum Fluss gingen."
                for n in range(9)
            ),
            ("news"),
            {"rules": ("gopher",)},
            None,
        ),
    ],
)
def test_prepare_names_the_reason(text: str, genre: str, more: dict[str, Any], reason: str | None) -> None:
    assert prepare(document(text, genre), Corpus(**more))[1] == reason


def test_code_and_technical_text_are_never_masked() -> None:
    for genre in ("code", "technical"):
        text = 'AUTHOR = "a.smith@forge.org"  # 8.8.8.8, 555-123-4567\n'
        assert prepare(document(text, genre), Corpus())[0]["text"] == text


def test_word_list_perplexity_and_classifier(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("grue\n")
    assert prepare(document(ARTICLE + " A grue."), Corpus(toxic_words=tmp_path / "words.txt"))[1] == "toxic_words"
    assert prepare(document(ARTICLE), Corpus(toxic_words=tmp_path / "words.txt"))[1] is None
    with pytest.raises(InputError, match="does not exist"):
        prepare(document(ARTICLE), Corpus(toxic_words=tmp_path / "gone.txt"))
    pick = random.Random(1)
    odd = " ".join("".join(pick.choices("bcdfghjklmnpqrstvwxz", k=7)) for _ in range(200))
    for name, text in (("good", ARTICLE), ("bad", odd)):
        (tmp_path / name).mkdir()
        pieces = text.replace(".", ",").split()
        for number in range(40):
            (tmp_path / name / f"{number}.txt").write_text(" ".join(pieces[number:] + pieces[:number]))
    unlike = Corpus(perplexity=Perplexity(reference=tmp_path / "good", percentile=100), rules=())
    assert prepare(document(odd, "unknown"), unlike)[1] == "perplexity"
    assert prepare(document(" ".join(ARTICLE.replace(".", ",").split()), "unknown"), unlike)[1] is None
    judged = Corpus(quality=Quality(good=tmp_path / "good", bad=tmp_path / "bad"), rules=())
    assert prepare(document(odd, "unknown"), judged)[1] == "quality_classifier"
    assert prepare(document(ARTICLE, "unknown"), judged)[1] is None
    assert filters_report(unlike)["perplexity"]["held_out_documents"] == 4
    assert filters_report(judged)["quality_classifier"]["accuracy"] > 0.9
    assert filters_report(Corpus()) == {}
    before = filters_fingerprint(judged)
    assert set(before) == {"corpus.quality.good", "corpus.quality.bad"}
    (tmp_path / "bad" / "more.txt").write_text("more")
    after = filters_fingerprint(judged)
    assert after["corpus.quality.good"] == before["corpus.quality.good"]
    assert after["corpus.quality.bad"] != before["corpus.quality.bad"]


@given(
    st.one_of(
        st.text(),
        AWKWARD,
        st.lists(
            st.sampled_from(
                [
                    "The smith. ",
                    "uses cookies",
                    "\n",
                    "\n\n",
                    "a@b.co ",
                    "8.8.8.8 ",
                    "[1]",
                    "[",
                    "]",
                    "{",
                    "lorem ipsum ",
                    "555-123-4567",
                    "\r",
                    "…",
                    "- ",
                ]
            )
        ).map("".join),
    ),
    st.sampled_from(["web", "books", "code", "unknown"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_prepare_is_idempotent_and_never_raises(text: str, genre: str, strict: bool) -> None:
    rules = (*Corpus().rules, "punctuation") if strict else Corpus().rules
    settings = Corpus(rules=rules, min_chars=1)
    once, reason = prepare(document(text, genre), settings)
    twice, again = prepare(once, settings)
    assert (twice, again) == (once, reason)


def test_what_is_in_other_letters_is_not_english() -> None:
    """A model of languages takes lists of foreign names and numbers for English."""
    assert not filters._is_english("בשנה אחרת נבנה בית גדול ליד הגשר הישן SC-12 XL", "en")
    assert filters._is_english("The old forge stood by the bridge (הגשר).", "en")
