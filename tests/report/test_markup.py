"""Numbers in words, and escaping by construction."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.report.markup import at, count, figure, join, metric, number, percent, ratio, size, tag


@pytest.mark.parametrize(("shown", "wanted"), [
    (count(1_234_567), "1,234,567"), (count(None), "–"), (count(True), "–"), (count({"a": {"b": 2}}, "a", "b"), "2"),
    (figure(1.65781), "1.658"), (figure(12345.6), "12,346"), (figure(0), "0"),
    (figure(2.5e-7), "2.500e-07"), (figure(float("nan")), "–"),
    (figure(0.2568, digits=3), "0.257"), (percent(0.0893), "8.9%"), (percent(None), "–"),
    (metric(2_621_440), "2.62 M"), (metric(999), "999"), (metric(10**400), "–"), (metric("7"), "–"),
    (size(6_010_000), "6.01 MB"), (size({"file_bytes": 512}, "file_bytes"), "512 B"),
])  # fmt: skip
def test_words(shown: str, wanted: str) -> None:
    assert shown == wanted


def test_values_from_files_that_hold_anything() -> None:
    assert at({"a": [1]}, "a", "b") is None
    assert number("1") is None
    assert ratio(1, 0) is None
    assert ratio(1, 4) == 0.25


@given(st.text(), st.text())
def test_text_comes_back_and_nothing_else(text: str, value: str) -> None:
    markup = tag("p", text, title=value)
    assert markup.count("<") == markup.count(">") == 2
    inner = markup.split(">", 1)[1].removesuffix("</p>")
    assert html.unescape(inner) == re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)


def test_markup_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "a<b"), None, 3) == "<p><b>a&lt;b</b>3</p>"
    assert join("<", tag("br")) == "&lt;<br>"
