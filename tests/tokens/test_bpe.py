"""Lossless on any bytes, never a special token, the same as the library, the same every time."""

import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens import bpe
from lmforge.tokens.bpe import END_OF_TEXT, Tokenizer, train_tokenizer

WORDS = ["return", "self", "value", "the", "of", "count", "naïve", "don't", "12345", "<|", "endoftext", "|>", "日本語", "🙂"]


def texts(seed: int = 0, documents: int = 60) -> list[str]:
    generator = random.Random(seed)
    return [
        "".join(generator.choice(["\n", "\n    ", "\n        ", " ", " "]) + generator.choice(WORDS) for _ in range(80))
        for _ in range(documents)
    ]


VOCAB = 320
TOKENIZER = train_tokenizer(texts(), VOCAB)
pieces = st.text() | st.sampled_from([*WORDS, END_OF_TEXT, "\n    ", "\r\n\t", "  ", "\x1c", "\u2028", "'s", "_x", "((", "½", "\0"])
mixed = st.lists(pieces, max_size=12).map("".join)


@given(st.binary(max_size=200))
def test_any_bytes_come_back(data: bytes) -> None:
    assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(data)) == data


@given(mixed, st.binary(max_size=4), mixed)
def test_text_with_broken_bytes_in_it_comes_back(before: str, broken: bytes, after: str) -> None:
    data = before.encode() + broken + after.encode()
    tokens = TOKENIZER.encode_bytes(data)
    assert TOKENIZER.decode_bytes(tokens) == data
    assert TOKENIZER.decode(tokens) == data.decode("utf-8", "replace")


@given(mixed)
@settings(max_examples=300)
def test_any_text_comes_back_without_special_tokens_and_as_the_library_has_it(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.encode_bytes(text.encode()) == tokens
    assert TOKENIZER.end_of_text not in tokens
    assert TOKENIZER._library.encode(text, add_special_tokens=False).ids == tokens


@given(st.lists(mixed, max_size=6))
def test_a_batch_is_its_texts_one_by_one(batch: list[str]) -> None:
    assert TOKENIZER.encode_batch(batch) == [TOKENIZER.encode(text) for text in batch]


def test_every_character_is_cut_as_the_library_cuts_it() -> None:
    """The ranges given to `re` agree with the library's classes at every code point they are used for."""
    library = TOKENIZER._library.pre_tokenizer
    for first in range(0, bpe._COVERED, 64):
        characters = [c for c in map(chr, range(first, min(first + 64, bpe._COVERED))) if not bpe._BEYOND.match(c)]
        text = "".join(f"{c}a{c}1{c}{c} ({c}\n{c} {c}  " for c in characters)
        offsets = [span for _, span in library.pre_tokenize_str(text)]
        assert [match.span() for match in TOKENIZER._pieces.finditer(text)] == offsets, f"near U+{first:04X}"


def test_the_end_of_text_is_token_0_and_only_ever_put_by_hand() -> None:
    text = f"a{END_OF_TEXT}b {END_OF_TEXT}"
    tokens = TOKENIZER.encode(text)
    assert 0 not in tokens
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.end_of_text == 0
    assert TOKENIZER.token_bytes(0) == b""
    assert TOKENIZER.decode([0, *tokens, 0]) == text
    names = [TOKENIZER._library.id_to_token(token) for token in range(TOKENIZER.vocab_size)]
    assert names.count(END_OF_TEXT) == 1


def test_every_byte_has_a_token_of_its_own() -> None:
    single = {TOKENIZER.token_bytes(token) for token in range(TOKENIZER.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= single
    assert len(single) == TOKENIZER.vocab_size


def test_python_indentation_is_one_token() -> None:
    tokens = TOKENIZER.encode("return\n        self")
    assert [TOKENIZER.token_bytes(token) for token in tokens] == [b"return", b"\n        ", b"self"]


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud83d\ude42b")) == "a🙂b"


def test_decoding_shows_bytes_that_are_not_text_as_the_replacement_character() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode_bytes(b"a\xffb")) == "a\ufffdb"


@pytest.mark.parametrize("token", [-1, VOCAB, 10**9])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InputError, match=f"token {token}: outside the vocabulary of {VOCAB}; is this another model's tokenizer"):
        TOKENIZER.token_bytes(token)
    with pytest.raises(InputError, match="outside the vocabulary"):
        TOKENIZER.decode([1, token])


def test_a_full_memory_of_pieces_is_emptied_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(TOKENIZER._content)
    monkeypatch.setattr(bpe, "_MEMO_PIECES", 3)
    assert tokenizer.encode_batch(texts(1)) == TOKENIZER.encode_batch(texts(1))
    assert len(tokenizer._memo) <= 60
    long = "x" * 5000
    assert tokenizer.decode(tokenizer.encode(long)) == long
    assert long not in tokenizer._memo


def test_training_is_deterministic_whatever_the_order_of_the_texts() -> None:
    assert train_tokenizer(texts(), VOCAB).sha256 == TOKENIZER.sha256
    assert train_tokenizer(reversed(texts()), VOCAB).sha256 == TOKENIZER.sha256
    assert train_tokenizer(texts(7), VOCAB).sha256 != TOKENIZER.sha256


def test_saved_and_loaded_it_is_the_same_file(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert loaded.sha256 == TOKENIZER.sha256
    assert loaded.vocab_size == TOKENIZER.vocab_size == VOCAB
    assert loaded.encode_batch(texts(2)) == TOKENIZER.encode_batch(texts(2))


def test_the_file_works_in_the_library_alone(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts(3)[:5]:
        assert library.encode(text).ids == TOKENIZER.encode(text)
        assert library.decode(TOKENIZER.encode(text)) == text
    assert library.encode(END_OF_TEXT).ids == [0]  # it alone reads the special token, as other programs expect


def test_more_vocabulary_than_the_texts_support_is_refused_with_the_most_they_do() -> None:
    few = ["abab abab abab"] * 4
    with pytest.raises(InputError, match=r"tokens\.vocab_size: 5000 is more than these texts support \((\d+) merges found\); "
                                         r"set tokens\.vocab_size to at most (\d+) or add texts") as refused:
        train_tokenizer(few, 5000)
    most = int(str(refused.value).split("at most ")[1].split()[0])
    assert train_tokenizer(few, most).vocab_size == most
    with pytest.raises(InputError, match=f"at most {most}"):
        train_tokenizer(few, most + 1)


def test_no_text_at_all_supports_the_bytes_alone() -> None:
    assert sorted(train_tokenizer([], 257).decode_bytes(range(1, 257))) == list(range(256))
    with pytest.raises(InputError, match=r"\(0 merges found\); set tokens\.vocab_size to at most 257"):
        train_tokenizer([], 300)
    with pytest.raises(InputError, match=r"tokens\.vocab_size: 256 has no room for 256 bytes and the end of text; set it to 257"):
        train_tokenizer(texts(), 256)


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file; run the tokens stage first"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer that lmforge wrote .*; run the tokens stage again"):
        Tokenizer.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read as UTF-8 text"):
        Tokenizer.load(path)
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    other.pre_tokenizer = TOKENIZER._library.pre_tokenizer
    path.write_text(other.to_str())
    with pytest.raises(InputError, match=r"token 0 is not <\|endoftext\|> or a byte has no token"):
        Tokenizer.load(path)
