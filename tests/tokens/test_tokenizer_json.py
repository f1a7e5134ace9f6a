"""Vocabularies of others: the same tokens as the library gives, the end of text first, names of special tokens in a
text are text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.bpe import _CHARACTER, CHAT_TOKENS, END_OF_TEXT, Tokenizer
from lmforge.tokens.chat import has_chat_tokens, stop_tokens
from lmforge.tokens.tokenizer_json import with_end_first

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w")]
END = 256 + len(MERGES)  # the end of text


def vocabulary() -> dict[str, Any]:
    """GPT-2's kind of tokenizer.json: bytes, a few merges, the end of text last."""
    alphabet = {character: number for number, character in enumerate(sorted(_CHARACTER))}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    names = {
        **alphabet,
        **{left + right: 256 + number for number, (left, right) in enumerate(MERGES)},
        END_OF_TEXT: END,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "added_tokens": [
            {
                "id": END,
                "content": END_OF_TEXT,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": names,
            "merges": [list(pair) for pair in MERGES],
        },
    }


def added(content: str, number: int, special: bool = True) -> dict[str, Any]:
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


THEIRS = tokenizers.Tokenizer.from_str(json.dumps(vocabulary()))
OURS = Tokenizer(with_end_first(json.dumps(vocabulary()), END, "theirs"))
SWAP = {0: END, END: 0}


@given(
    st.text()
    | st.lists(st.sampled_from(["hell", "hello world", "it's 12", "naïve", "日本語", "🙂", "\n\n", "  x\t"])).map(
        " ".join
    )
)
def test_tokens_are_those_of_the_library_and_come_back(text: str) -> None:
    expected = (
        [SWAP.get(token, token) for token in THEIRS.encode(text).ids] if END_OF_TEXT not in text else OURS.encode(text)
    )
    assert OURS.encode(text) == expected
    assert OURS.encode_bytes(text.encode()) == expected
    assert OURS.decode(expected) == text
    assert 0 not in expected


def test_the_end_of_text_comes_first_and_is_never_in_a_text() -> None:
    assert OURS.vocab_size == END + 1
    assert OURS.special == {END_OF_TEXT: 0}
    assert OURS.token_bytes(0) == b""
    assert OURS.token_bytes(END) == b"!"  # the token that was 0
    text = f"a {END_OF_TEXT} is text"
    assert 0 not in OURS.encode(text)
    assert OURS.decode(OURS.encode(text)) == text
    assert OURS.decode_bytes(OURS.encode_bytes(b"hell\xff\x00 w")) == b"hell\xff\x00 w"
    assert OURS.encode("\ud800") == OURS.encode("\ufffd")


def test_added_tokens_beyond_the_merges(tmp_path: Path) -> None:
    theirs = vocabulary()
    theirs["added_tokens"] += [
        added("<|user|>", END + 1),
        added("<|stop|>", END + 2),
        added("<tool call>", END + 4, special=False),
    ]
    tokenizer = Tokenizer(with_end_first(json.dumps(theirs), END, "theirs"))
    assert tokenizer.vocab_size == END + 5
    assert set(stop_tokens(tokenizer)) == {0, END + 2}
    assert not has_chat_tokens(tokenizer)  # one of four makes no chat
    assert tokenizer.token_bytes(END + 4) == b"<tool call>"
    assert tokenizer.token_bytes(END + 3) == b""
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256
    theirs["added_tokens"] += [
        added(name, END + 5 + place) for place, name in enumerate(CHAT_TOKENS) if name != "<|user|>"
    ]
    assert has_chat_tokens(Tokenizer(with_end_first(json.dumps(theirs), END, "theirs")))


def test_what_is_no_byte_level_vocabulary_is_refused() -> None:
    for changes, words in (
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "SentencePiece"),
        ({"model": {}}, "not a tokenizer.json"),
        ({"added_tokens": []}, "no special token"),
    ):
        with pytest.raises(InputError, match=words):
            with_end_first(json.dumps({**vocabulary(), **changes}), END, "theirs")
    with pytest.raises(InputError, match="run the tokens stage again"):
        Tokenizer(json.dumps(vocabulary()))  # its token 0 is a sign
