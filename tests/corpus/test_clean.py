"""clean: idempotent, repairs damage, keeps code; why_dropped: each reason by a text that has it."""

import ast
import itertools
import random
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.clean import (
    clean,
    duplicate_line_share,
    duplicate_ngram_share,
    filters_fingerprint,
    filters_report,
    prepare,
    why_dropped,
)  # fmt: skip
from lmforge.corpus.document import Document
from lmforge.errors import InputError
from lmforge.recipe import Corpus, Perplexity, Quality

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen while nobody looked up.\n"
# Characters that cleaning treats specially, so that random texts meet every step and their combinations.
AWKWARD = st.text(
    st.sampled_from(
        "a b\t\n\r\f\v\x00\x1b[0m;\x7f\x85\x9d\u2028\ufeff\xa0\u200b'\"“”\\Ãâ€™©ï¿½é\u0301e\u212bＡ\ud83d\ude00Ð\x89ﬁ"
    )
)


@given(st.one_of(st.text(), AWKWARD))
@settings(max_examples=500, deadline=None)
def test_clean_is_idempotent(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert "\r" not in once
    assert "\n\n\n\n" not in once
    assert all(line == line.rstrip() for line in once.split("\n"))
    once.encode()  # no lone surrogate is left


@pytest.mark.parametrize(
    ("damaged", "whole"),
    [
        ("It was â€œfineâ€\x9d, voilÃ\xa0 lâ€™Ã©tÃ©", "It was “fine”, voilà l’été"),  # UTF-8 read as Windows-1252
        ("cafe\u0301", "café"),  # NFC
        ("a\r\nb\rc", "a\nb\nc"),
        ("\x1b[1;31mred\x1b[0m \x00\x07alert\x7f", "red alert"),
        ("one  \t\n\n\n\n\n\ntwo\n\n\n", "one\n\n\ntwo\n"),
        ("\ufeff\ud83d\ude00 \ud800", "😀 \ufffd"),
        ("\n\n    indented\n\ttab", "    indented\n\ttab"),
        ("page\n\f\nbreak", "page\n\nbreak"),
    ],
)
def test_clean_repairs(damaged: str, whole: str) -> None:
    assert clean(damaged) == whole


def test_marks_that_skip_the_detector_are_never_bad() -> None:
    """All strings of up to 4 of them and of the kinds of ASCII that ftfy's patterns ask for."""
    for length in range(1, 5):
        assert not any(is_bad("".join(text)) for text in itertools.product("‘’“”–—…• aA1.", repeat=length))


@pytest.mark.parametrize(
    "text", ["“curly” ‘quotes’", "&lt;b&gt; &amp;amp; &eacute;", "ﬁne ﬂow", "ＦＵＬＬ width", "x\u200dy", "naïve café – 5 €"]
)
def test_clean_leaves_what_may_be_meant(text: str) -> None:
    assert clean(text) == text


def test_clean_keeps_python_source_parseable_and_its_names() -> None:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-m]*.py"))[:60]
    assert len(files) > 30
    for path in files:
        source = path.read_text(encoding="utf-8")
        before, after = ast.parse(source), ast.parse(clean(source))
        names = [[node.id for node in ast.walk(tree) if isinstance(node, ast.Name)] for tree in (before, after)]
        assert names[0] == names[1], path


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), min_size=1, max_size=5))
@settings(deadline=None)
def test_clean_keeps_any_string_literal_parseable(values: list[str]) -> None:
    source = "".join(f"if True:\n\tx{number} = {value!r}  \r\n" for number, value in enumerate(values))
    tree = ast.parse(clean(source))
    assert [type(node) for node in tree.body] == [ast.If] * len(values)


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


ARTICLE = "\n".join((
    "The old forge stood at the end of the village, where the road turned down to the river and the mill.",
    "Every morning the smith lit the fire with dry birch, and by noon the iron was bright enough to bend.",
    "Nobody remembered who had built the place, but the stones over the door were worn smooth with age.",
    "In winter children came to warm their hands, and they would stay until someone called them home.",
    "He did not talk much, yet he knew the name of each horse that he had shod in forty years of work.",
))  # fmt: skip


def test_prepare_cleans_masks_and_keeps_the_rest() -> None:
    notices: Counter[str] = Counter()
    given = document(ARTICLE + "\r\nWrite to a.smith@forge.org.\nThis site uses cookies.\n", url="u")
    prepared, reason = prepare(given, Corpus(), notices)
    assert reason is None
    assert prepared == {**given, "text": ARTICLE + "\nWrite to [email].\n"}
    assert notices == {"masked: email": 1, "boilerplate lines removed": 1}
    assert given["text"].endswith("cookies.\n")  # what is given is not changed


BIRDS = ("larks", "finches", "robins", "wrens", "crows", "ravens", "doves", "gulls", "owls", "hawks", "terns")
STOPLESS = " ".join([
    "Iron melts, steel bends, fire burns, smiths labour, winters pass, rivers freeze.", "Horses trot through snow, wagons creak, dogs bark.",
    *(f"{bird} sang before breakfast, {bird} sang after dinner." for bird in BIRDS)])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "genre", "more", "reason"),
    [
        (ARTICLE, "web", {}, None), ("short", "web", {}, "too_short"), (PROSE * 5, "web", {}, "repeated_lines"),
        (ARTICLE.replace("forge", "lorem ipsum"), "web", {}, "c4_lorem_ipsum"), (ARTICLE.replace("forge", "lorem ipsum"), "books", {}, None),
        (ARTICLE + "{", "web", {}, "c4_curly_bracket"), (ARTICLE + "{", "web", {"rules": ()}, None), (ARTICLE + "{", "news", {}, None),
        ("x = {1: 2}\n" + "def f(a):\n    return a + 1\n" * 3, "code", {}, None),
        (ARTICLE, "web", {"languages": ("de",)}, "other_language"), (ARTICLE, "web", {"languages": ("de", "en")}, None),
        (ARTICLE, "code", {"languages": ("de",)}, None),
        (STOPLESS, "news", {"rules": ("gopher",)}, "gopher_stop_words"),
        (" ".join(f"Der alte Schmied sah am {n}. Abend aus dem {n * 7}. Fenster, wie {n * 3} Kinder zum Fluss gingen." for n in range(9)), "news",
         {"rules": ("gopher",)}, None),
    ],
)  # fmt: skip
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


@given(st.one_of(st.text(), AWKWARD, st.lists(st.sampled_from(
    ["The smith. ", "uses cookies", "\n", "\n\n", "a@b.co ", "8.8.8.8 ", "[1]", "[", "]", "{", "lorem ipsum ",
    "555-123-4567", "\r", "…", "- "])).map("".join)),
    st.sampled_from(["web", "books", "code", "unknown"]), st.booleans())  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_prepare_is_idempotent_and_never_raises(text: str, genre: str, strict: bool) -> None:
    rules = (*Corpus().rules, "punctuation") if strict else Corpus().rules
    settings = Corpus(rules=rules, min_chars=1)
    once, reason = prepare(document(text, genre), settings)
    twice, again = prepare(once, settings)
    assert (twice, again) == (once, reason)
