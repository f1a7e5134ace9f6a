"""clean: idempotent, repairs damage, keeps code; why_dropped: each reason by a text that has it."""

import ast
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.clean import clean, duplicate_line_share, duplicate_ngram_share, why_dropped
from lmforge.recipe import Corpus

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
    ast.parse(clean(source))


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
