"""One tokenizer for vocabularies of ours and of others: what both can do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described

OWN = train_tokenizer(["the smith hammers iron", "日本 naïve 🙂"] * 9, 270)
THEIRS = Tokenizer(described(OWN.standard_json(), "x"))


@given(st.text())
def test_our_loops_and_the_library_agree(text: str) -> None:
    assert THEIRS.library is not None
    assert OWN.library is None
    tokens, spans = OWN.encode_spans(text)
    others, places = THEIRS.encode_spans(text)
    assert tokens == others == OWN.encode(text) == THEIRS.encode(text)
    assert np.array_equal(spans, places)
    assert OWN.decode(tokens) == THEIRS.decode(tokens)
    assert (
        OWN.missing(np.array(tokens), len(text))
        == THEIRS.missing(np.array(tokens), len(THEIRS.decode_bytes(tokens)))
        == 0
    )


def test_spans_are_of_characters() -> None:
    tokens, spans = OWN.encode_spans("é🙂x")
    text = "é🙂x"
    for token, (first, last) in zip(tokens, spans.tolist(), strict=True):
        assert OWN.token_bytes(token) in text[first:last].encode()
    assert OWN.encode_spans("")[1].shape == (0, 2)


@pytest.mark.parametrize("tokenizer", [OWN, THEIRS], ids=["own", "library"])
def test_a_token_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(InputError, match="outside the vocabulary of 270"):
            tokenizer.token_bytes(token)
    assert [tokenizer.token_bytes(t) for t in range(270)] == [OWN.token_bytes(t) for t in range(270)]
