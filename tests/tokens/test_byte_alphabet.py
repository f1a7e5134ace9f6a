"""The characters that stand for bytes are GPT-2's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from lmforge.tokens.byte_alphabet import ALPHABET, BYTE_OF, CHARACTERS, bytes_of_names, names_of_bytes


def test_it_is_the_librarys() -> None:
    assert set(CHARACTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    library = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for byte in range(128):
        assert library.pre_tokenize_str(chr(byte))[0][0] == CHARACTERS[byte]
    assert sorted(CHARACTERS) == [CHARACTERS[byte] for byte in ALPHABET]


@given(st.lists(st.binary(max_size=9), min_size=1))
def test_names_and_bytes_are_one_to_one(parts: list[bytes]) -> None:
    ends = np.cumsum([len(part) for part in parts])
    names = names_of_bytes(b"".join(parts), ends)
    assert [bytes(BYTE_OF[character] for character in name) for name in names] == parts
    data, stops = bytes_of_names(names)
    assert data == b"".join(parts)
    assert (stops == ends).all()
