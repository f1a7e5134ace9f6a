"""Letters do not change with case, space and punctuation; words do not run together."""

import string

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.overlap.words import read_words, run_hash

WORD = st.text(string.ascii_letters + string.digits + "éßж漢", min_size=1, max_size=8)


@given(st.lists(WORD, min_size=1, max_size=12), st.sampled_from([" ", "\n", ", ", " — ", "\t“", " ", "! ", "。"]))
@settings(deadline=None)  # compiled at the first call
def test_layout_case_and_punctuation_make_no_difference(words: list[str], between: str) -> None:
    plain, other = read_words(" ".join(words)), read_words(f"({between.join(words).upper().lower()}...)")
    lowered = read_words(" ".join(words).upper().lower())
    assert (other.prefix == lowered.prefix).all()
    assert (other.hashes == lowered.hashes).all()
    assert plain.starts.size >= len(words)


def test_words() -> None:
    assert read_words("Don't stop, the U.S.-made well-known thing.").starts.tolist() == [
        0,
        4,
        8,
        11,
        12,
        13,
        17,
        21,
        26,
    ]
    assert (read_words("don’t").hashes == read_words("DONT").hashes).all()
    assert read_words("漢字 kana").starts.size == 3
    assert read_words("").prefix.tolist() == [0]
    assert read_words("one\n\ntwo\n").lines.tolist() == [3, 3, 6, 6]
    assert read_words("1 2").hashes.tolist() != read_words("1 3").hashes.tolist()  # numbers differ


def test_a_run_of_letters_has_one_hash_wherever_it_stands() -> None:
    one, other = read_words("the quick brown fox"), read_words("so THE QUICK, brown")
    assert run_hash(one.prefix, 0, 13) == run_hash(other.prefix, 2, 15) != run_hash(one.prefix, 0, 12)
    assert np.uint64(0) != run_hash(one.prefix, 0, 0)
