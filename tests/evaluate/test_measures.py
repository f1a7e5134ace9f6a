"""Measures against worked examples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from lmforge.evaluate.measures import matthews, normalised, word_f1


def test_words_in_common() -> None:
    assert normalised("The  Quick, brown fox!") == "quick brown fox"
    assert word_f1("the cat sat", "a cat") == pytest.approx(2 / 3)
    assert (word_f1("", ""), word_f1("", "cat"), word_f1("cat", "dog"), word_f1("cat", "Cat.")) == (1, 0, 0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
def test_matthews_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    true, found = ([pair[place] for pair in pairs] for place in (0, 1))
    assert matthews(true, found) == pytest.approx(matthews_corrcoef(true, found), abs=1e-9)


def test_answers_in_scripts_without_spaces_are_compared_by_their_signs() -> None:
    assert normalised("「東京」。") == "東京"
    assert word_f1("東京都です", "東京都") == pytest.approx(6 / 8)
    assert word_f1("नमस्ते।", "नमस्ते") == 1
