"""Every figure in README and docs is the one in bench/results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench.figures import VALUE, filled, pages, shown, value


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_pages_say_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, f"{page.name} differs from bench/results; run: make figures"


def test_a_changed_digit_is_noticed() -> None:
    text = "int8: <!--= int8: d_model 384, 6 layers/decode_1/ratio | .2f -->9.99<!--=--> times"
    right = filled(text)
    assert right != text
    assert filled(right) == right
    assert float(re.sub(r"<!--.*?-->", "", right).split()[1]) == round(
        value("int8", "d_model 384, 6 layers/decode_1/ratio"), 2
    )


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match=r"bench/results/int8.json: no 'nowhere'"):
        value("int8", "nowhere/ratio")
    assert shown(0.1234, ".1f ×100") == "12.3"
    assert VALUE.search("<!--= a: b/c d | .1f -->1<!--=-->")
