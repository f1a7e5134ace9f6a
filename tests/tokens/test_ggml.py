"""Vocabularies of GGUF files give the ids of the tokenizers that they were made from."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.ggml import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, WHOLE, tokenizer_from
from lmforge.tokens.ggml_write import vocabulary_of
from lmforge.tokens.library import BLANK
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from tests.tokens.test_tokenizer_json import END, vocabulary

TEXTS = ["hello world", " 123 4\u00b2", "d\u00e9j\u00e0 vu \u4f60\u597d \U0001f600", "\x00\x04\n\n  x", ""]


def byte_level(**changes: Any) -> dict[str, Any]:
    metadata = vocabulary_of(Tokenizer(described(orjson.dumps(vocabulary()).decode(), "x", eos=[END]))).metadata
    return {key: value for key, value in metadata.items() if key != WHOLE} | changes


def sentencepiece(**changes: Any) -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), BLANK, "h", "e", "l", "o"]
    pieces += ["ll", "he", f"{BLANK}he", "llo", "hell", f"{BLANK}hello"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) - 259)]
    scores = [0.0] * 259 + [-20.0] * 5 + [-1.0, -2.0, -3.0, -4.0, -6.0, -5.0]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | changes  # fmt: skip


def best_first(text: str, metadata: dict[str, Any]) -> list[str]:
    """SentencePiece's own rule: of all neighbours whose joint piece exists, the likeliest first, then the leftmost."""
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    parts = list(BLANK + text.replace(" ", BLANK))
    while True:
        joint = [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not joint:
            return parts
        at = min(joint)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_ids_are_those_of_the_tokenizer(text: str) -> None:
    original = tokenizers.Tokenizer.from_str(orjson.dumps(vocabulary()).decode())
    back = Tokenizer(tokenizer_from(byte_level(), "x"))
    assert back.encode(text) == original.encode(text, add_special_tokens=False).ids
    assert back.special_tokens.end_of_text == END


@given(st.text(alphabet="helo ", min_size=1, max_size=12).filter(lambda text: "  " not in text))
def test_sentencepiece_merges_the_likeliest_pair_first(text: str) -> None:
    metadata = sentencepiece()
    back = Tokenizer(tokenizer_from(metadata, "x"))
    names = metadata["tokenizer.ggml.tokens"]
    assert [names[token] for token in back.encode(text)] == best_first(text, metadata)
    assert back.decode(back.encode(text)) == text


def test_sentencepiece_has_bytes_for_the_rest_and_bos_once() -> None:
    back = Tokenizer(tokenizer_from(sentencepiece(), "x"))
    assert back.encode("\u4f60")[1:] == [3 + byte for byte in "\u4f60".encode()]
    assert back.encode_document("he").count(1) == 1
    assert back.begin == 1
    without = Tokenizer(tokenizer_from(sentencepiece(**{"tokenizer.ggml.add_bos_token": False}), "x"))
    assert 1 not in without.encode_document("he")
    bare = Tokenizer(tokenizer_from(sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}), "x"))
    assert bare.encode("he") == [sentencepiece()["tokenizer.ggml.tokens"].index("he")]


def test_the_whole_file_is_taken_where_it_is_ours() -> None:
    tokenizer = Tokenizer(described(orjson.dumps(vocabulary()).decode(), "x", eos=[END]))
    metadata = vocabulary_of(tokenizer).metadata
    assert tokenizer_from(metadata, "x") == tokenizer.text
    fewer = {**metadata, "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], "more"]}
    fewer["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], USER_DEFINED]
    assert Tokenizer(tokenizer_from(fewer, "x")).vocab_size == tokenizer.vocab_size + 1


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "no tokenizer.ggml.tokens"),
        (byte_level(**{"tokenizer.ggml.pre": "unheard-of"}), "tokenizer.ggml.pre = 'unheard-of'"),
        (byte_level(**{"tokenizer.ggml.model": "rwkv"}), "tokenizer.ggml.model = 'rwkv'"),
        (byte_level(**{"tokenizer.ggml.merges": None}), "no tokenizer.ggml.merges"),
        (byte_level(**{"tokenizer.ggml.eos_token_id": 9999}), "eos_token_id = 9999"),
        (byte_level(**{"tokenizer.ggml.token_type": [1]}), "1 token types"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_its_key(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        tokenizer_from(metadata, "m.gguf")
    assert "\n" not in str(caught.value)


def test_the_chat_template_comes_along() -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert Tokenizer(tokenizer_from(byte_level(**{"tokenizer.chat_template": template}), "x")).chat_template == template
