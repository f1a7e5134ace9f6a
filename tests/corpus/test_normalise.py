"""clean: idempotent, repairs damage, keeps code."""

import ast
import itertools
import sysconfig
from pathlib import Path

import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.normalise import clean

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
        ("slide\x0bsecond", "slide\nsecond"),
        ("alpha\x00\x00\x00beta", "alpha beta"),
        ("name\x1fprice\x01é\x1enext", "name price é\nnext"),
        ("N\x08NA\x08AM\x08ME _\x08x", "NAME x"),
    ],
)
def test_clean_repairs(damaged: str, whole: str) -> None:
    assert clean(damaged) == whole


def test_marks_that_skip_the_detector_are_never_bad() -> None:
    """All strings of up to 4 of them and of the kinds of ASCII that ftfy's patterns ask for."""
    for length in range(1, 5):
        assert not any(is_bad("".join(text)) for text in itertools.product("‘’“”–—…• aA1.", repeat=length))


@pytest.mark.parametrize(
    "text",
    ["“curly” ‘quotes’", "&lt;b&gt; &amp;amp; &eacute;", "ﬁne ﬂow", "ＦＵＬＬ width", "x\u200dy", "naïve café – 5 €"],
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
