"""Exact duplicates: layout does not matter, anything else does."""

from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.overlap import ExactDuplicates, text_digest

WORDS = st.lists(st.text(st.characters(categories=("L", "N")), min_size=1), min_size=1, max_size=8)


@given(WORDS)
def test_layout_makes_no_difference(words: list[str]) -> None:
    seen = ExactDuplicates()
    assert seen.add(text_digest(" ".join(words)))
    assert not seen.add(text_digest("\n\t".join(words) + "\n"))
    assert seen.add(text_digest("".join(words) + "!"))
    assert len(seen) == 2
