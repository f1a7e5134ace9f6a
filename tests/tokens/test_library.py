"""Vocabularies of others: the ids are the library's, every token has its bytes, what has no token is counted."""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.generate.decode import SampledToken, TextAssembler
from lmforge.tokens.library import begins_with, secret_name
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from tests.tokens.others import KINDS, SPECIALS, TEXTS, with_end

PARTS = [
    *TEXTS[:5],
    *SPECIALS,
    "<|endoftext|>",
    " ",
    "  ",
    "\n",
    "\t",
    "日本",
    "🙂",
    "é",
    "e\u0301",
    "\x04",
    "▁",
    "हिन्दी",
    "7",
]
TEXT = st.text(max_size=40) | st.lists(st.sampled_from(PARTS), max_size=8).map("".join)
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def ours(kind: str) -> Tokenizer:
    return Tokenizer(described(KINDS[kind](), kind, **with_end(KINDS[kind](), kind)))


@cache
def theirs(kind: str) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_str(KINDS[kind]())
    library.encode_special_tokens = True
    return library


def known(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@kinds
@given(text=TEXT)
@settings(max_examples=150)
def test_ids_are_those_of_the_library(kind: str, text: str) -> None:
    tokens = ours(kind).encode(text)
    if not any(name in text for name in SPECIALS):  # a Unigram model of the library finds them in a text
        assert tokens == theirs(kind).encode(known(text), add_special_tokens=False).ids
    assert not set(tokens) & (set(ours(kind).special.values()) - {ours(kind).library.unknown})
    assert ours(kind).encode_spans(text)[0] == tokens


@kinds
@given(text=TEXT)
@settings(max_examples=150)
def test_decoding_is_that_of_the_library(kind: str, text: str) -> None:
    tokens = ours(kind).encode(text)
    library = theirs(kind).decode(tokens, skip_special_tokens=True)
    assert ours(kind).decode(tokens) == library
    if kind in ("unigram", "llama"):  # every byte has a token
        assert ours(kind).missing(np.array(tokens), len(known(text).encode())) == 0


@given(text=TEXT)
def test_bytes_fall_back_and_come_back(text: str) -> None:
    assert ours("llama").decode(ours("llama").encode(text)) == known(text).replace("▁", " ")  # the library's own loss


@pytest.mark.parametrize("kind", ["byte level", "llama"])
@given(data=st.binary(max_size=30))
def test_any_bytes_are_written_as_far_as_there_are_tokens(kind: str, data: bytes) -> None:
    tokenizer = ours(kind)
    written = tokenizer.decode_bytes(tokenizer.encode_bytes(data))
    if kind == "byte level":
        has = {token for token in map(tokenizer.token_bytes, range(tokenizer.vocab_size)) if len(token) == 1}
        expected = bytes(byte for byte in data if bytes([byte]) in has)
        assert written == expected
    elif data and data.isascii():
        assert written == data


def test_what_has_no_token_is_dropped_as_the_library_does_and_counted() -> None:
    tokenizer = ours("byte level")
    text = "the smith \x04 日本 iron"
    tokens = np.array(tokenizer.encode(text))
    lost = tokenizer.missing(tokens, len(text.encode()))
    written = tokenizer.decode_bytes(tokens.tolist())
    assert lost == len(text.encode()) - len(written) > 0
    assert written == b"the smith   iron" or lost < 7
    assert tokenizer.missing(np.array(tokenizer.encode("the smith")), 9) == 0
    unknown = ours("metaspace")
    assert unknown.missing(np.array(unknown.encode("the 日 smith 本")), 0) == 2


@kinds
def test_tokens_have_the_bytes_that_they_stand_for(kind: str) -> None:
    tokenizer, library = ours(kind), theirs(kind)
    assert all(tokenizer.token_bytes(token) == b"" for token in tokenizer.special.values())
    anchor = tokenizer.encode("s")[-1]
    before = library.decode([anchor])
    for token in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token)
        if token not in tokenizer.special.values() and data.isascii():
            assert library.decode([anchor, token]) == before + data.decode(), library.id_to_token(token)


def test_byte_tokens_of_sentencepiece_are_bytes() -> None:
    tokenizer = ours("llama")
    tokens = tokenizer.encode("🙂")
    assert [tokenizer.token_bytes(token) for token in tokens[-4:]] == [b"\xf0", b"\x9f", b"\x99", b"\x82"]


@kinds
@given(text=TEXT)
@settings(max_examples=60)
def test_a_text_grows_token_by_token_without_taking_anything_back(kind: str, text: str) -> None:
    tokenizer = ours(kind)
    tokens = tokenizer.encode(text)
    assembler = TextAssembler(tokenizer)
    parts = [
        assembler.add(SampledToken(0, token, 0.0, finish="length" if place == len(tokens) - 1 else None))[0]
        for place, token in enumerate(tokens)
    ]
    strips = tokenizer.library.strips
    grown = "".join(parts)
    assert grown[min(strips, len(grown) - len(grown.lstrip(" "))) :] == tokenizer.decode(tokens)


@kinds
@given(text=TEXT)
@settings(max_examples=60)
def test_spans_cover_what_tokens_say(kind: str, text: str) -> None:
    tokenizer = ours(kind)
    tokens, spans = tokenizer.encode_spans(text)
    assert spans.shape == (len(tokens), 2)
    assert ((spans >= 0) & (spans <= len(known(text)))).all()
    if kind == "byte level" and not tokenizer.missing(np.array(tokens, dtype=int), len(known(text).encode())):
        for token, (first, last) in zip(tokens, spans.tolist(), strict=True):
            assert tokenizer.token_bytes(token) in known(text)[first:last].encode()


@kinds
def test_a_document_has_one_beginning(kind: str) -> None:
    tokenizer = ours(kind)
    tokens = tokenizer.encode_document("<s>the smith")
    bos = tokenizer.special_tokens.bos
    adds = begins_with(json.loads(KINDS[kind]()), kind)
    assert adds == (bos if kind in ("unigram", "llama") else None)
    assert tokens[0] == tokenizer.begin == (adds if adds is not None else tokenizer.end_of_text)
    assert tokens.count(tokenizer.begin) == 1


@kinds
def test_the_name_of_a_special_token_is_text_unless_asked(kind: str) -> None:
    tokenizer = ours(kind)
    for name, token in tokenizer.special.items():
        if name == "<unk>":
            continue
        assert token not in tokenizer.encode(f"the {name} smith")
        assert token in tokenizer.library.marked_spans(f"the {name} smith")[0]
        renamed = f"the {secret_name(token)} {name} smith"
        assert tokenizer.library.marked_spans(renamed, renamed=True)[0].count(token) == 1


@kinds
def test_ids_stay_the_originals_and_the_file_comes_back(kind: str) -> None:
    content = KINDS[kind]()
    assert json.loads(ours(kind).standard_json()) == json.loads(content)
    vocabulary = tokenizers.Tokenizer.from_str(content).get_vocab(with_added_tokens=True)
    for name, token in vocabulary.items():
        assert ours(kind).library.names[token] == name
    assert ours(kind).vocab_size == 1 + max(vocabulary.values())


def test_threads_share_one() -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = [" ".join(random.Random(seed).choices(PARTS, k=20)) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ours("llama").encode, texts)) == [ours("llama").encode(text) for text in texts]


def test_what_the_library_cannot_run_is_refused_in_one_line() -> None:
    file = json.loads(KINDS["llama"]())
    for changes in ({"model": {"type": "Other"}}, {"pre_tokenizer": {"type": "Nothing"}}):
        with pytest.raises(InputError, match=r"^x/tokenizer\.json: not a tokenizer\.json that `tokenizers` .* runs"):
            described(json.dumps({**file, **changes}), "x/tokenizer.json", eos=["</s>"])


@kinds
@given(text=TEXT)
@settings(max_examples=40)
def test_transformers_gives_the_same_ids(kind: str, text: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = _fast(transformers, kind)
    if any(name in text for name in SPECIALS):
        return
    assert ours(kind).encode(text) == tokenizer.encode(known(text), add_special_tokens=False, split_special_tokens=True)


_FAST: dict[str, object] = {}


def _fast(transformers, kind: str):  # type: ignore[no-untyped-def]
    if kind not in _FAST:
        _FAST[kind] = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(ours(kind).standard_json())
        )
    return _FAST[kind]
