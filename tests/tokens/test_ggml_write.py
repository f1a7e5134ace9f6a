"""Tokenizers of ours as vocabularies of GGUF files, and back from these alone."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.ggml import WHOLE, tokenizer_from
from lmforge.tokens.ggml_pre import pre_tokenizer
from lmforge.tokens.ggml_write import NEAREST, vocabulary_of
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from tests.tokens.test_ggml import sentencepiece
from tests.tokens.test_tokenizer_json import END, vocabulary

BYTE_LEVEL = Tokenizer(described(orjson.dumps(vocabulary()).decode(), "x", eos=[END]))
SENTENCEPIECE = Tokenizer(tokenizer_from(sentencepiece(), "x"))


@given(st.text(max_size=30))
def test_the_vocabulary_alone_gives_the_same_ids(text: str) -> None:
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        made = vocabulary_of(tokenizer)
        assert made.exact
        alone = {key: value for key, value in made.metadata.items() if key != WHOLE}
        back = Tokenizer(tokenizer_from(alone, "x"))
        assert back.encode(text) == tokenizer.encode(text)
        assert back.begin == tokenizer.begin
        assert back.special_tokens.eos == tokenizer.special_tokens.eos


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2"])
def test_the_way_to_cut_is_named(pre: str) -> None:
    file = {**vocabulary(), "pre_tokenizer": pre_tokenizer(pre)}
    made = vocabulary_of(Tokenizer(described(orjson.dumps(file).decode(), "x", eos=[END])))
    assert made.exact
    assert pre_tokenizer(made.metadata["tokenizer.ggml.pre"]) == pre_tokenizer(pre)


def test_vocabularies_learned_here_are_cut_in_a_way_of_their_own() -> None:
    tokenizer = train_tokenizer(["hello world " * 50, "def f(x): return x\n" * 50], 270)
    made = vocabulary_of(tokenizer, "{{ messages }}")
    assert not made.exact
    assert made.metadata["tokenizer.ggml.pre"] == NEAREST
    assert made.metadata["tokenizer.ggml.add_bos_token"]
    assert made.metadata["tokenizer.ggml.bos_token_id"] == tokenizer.begin
    assert Tokenizer(tokenizer_from(made.metadata, "x")).sha256 == tokenizer.sha256


def test_other_kinds_are_refused() -> None:
    file = {**vocabulary(), "model": {"type": "WordLevel", "vocab": vocabulary()["model"]["vocab"], "unk_token": "h"}}
    with pytest.raises(InputError, match="WordLevel"):
        vocabulary_of(Tokenizer(described(orjson.dumps(file).decode(), "x", eos=[END])))
