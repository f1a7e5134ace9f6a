"""Lossless on any bytes, never a special token, the same as the library, the same every time."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.bpe import CHAT_TOKENS, END_OF_TEXT, Tokenizer, train_on_pieces, train_tokenizer
from lmforge.tokens.byte_alphabet import CHARACTERS
from lmforge.tokens.pretokenize import WORDS_WITHOUT_MARKS, cut

WORDS = [
    "return",
    "self",
    "value",
    "the",
    "of",
    "count",
    "naïve",
    "don't",
    "12345",
    "<|",
    "endoftext",
    "|>",
    "日本語",
    "🙂",
]


def texts(seed: int = 0, documents: int = 60) -> list[str]:
    generator = random.Random(seed)
    return [
        "".join(generator.choice(["\n", "\n    ", "\n        ", " ", " "]) + generator.choice(WORDS) for _ in range(80))
        for _ in range(documents)
    ]


VOCAB = 320
TOKENIZER = train_tokenizer(texts(), VOCAB)
LIBRARY = tokenizers.Tokenizer.from_str(TOKENIZER._content)
LIBRARY.encode_special_tokens = True  # "<|endoftext|>" inside a text is text
pieces = st.text() | st.sampled_from(
    [*WORDS, END_OF_TEXT, "\n    ", "\r\n\t", "  ", "\x1c", "\u2028", "'s", "_x", "((", "½", "\0"]
)
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
    assert LIBRARY.encode(text, add_special_tokens=False).ids == tokens


@given(st.lists(mixed, max_size=6))
def test_a_batch_is_its_texts_one_by_one(batch: list[str]) -> None:
    assert TOKENIZER.encode_batch(batch) == [TOKENIZER.encode(text) for text in batch]


def test_the_end_of_text_is_token_0_and_only_ever_put_by_hand() -> None:
    text = f"a{END_OF_TEXT}b {END_OF_TEXT}"
    tokens = TOKENIZER.encode(text)
    assert 0 not in tokens
    assert TOKENIZER.decode(tokens) == text
    assert TOKENIZER.end_of_text == 0
    assert TOKENIZER.token_bytes(0) == b""
    assert TOKENIZER.decode([0, *tokens, 0]) == text
    names = [LIBRARY.id_to_token(token) for token in range(TOKENIZER.vocab_size)]
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
    with pytest.raises(
        InputError, match=f"token {token}: outside the vocabulary of {VOCAB}; is this another model's tokenizer"
    ):
        TOKENIZER.token_bytes(token)
    with pytest.raises(InputError, match="outside the vocabulary"):
        TOKENIZER.decode([1, token])


def test_threads_that_share_a_tokenizer_do_not_disturb_each_other() -> None:
    tokenizer = Tokenizer(TOKENIZER._content)
    alone = [TOKENIZER.encode_batch(texts(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: tokenizer.encode_batch(texts(seed)), range(4))) == alone


def test_arrays_and_lists_are_the_same_tokens() -> None:
    tokens, ends = TOKENIZER.encode_arrays(texts(5))
    assert [each.tolist() for each in np.split(tokens, ends[:-1])] == TOKENIZER.encode_batch(texts(5))
    tokens, ends = TOKENIZER.encode_arrays([])
    assert len(tokens) == len(ends) == 0


def test_training_is_deterministic_whatever_the_order_of_the_texts() -> None:
    assert train_tokenizer(texts(), VOCAB).sha256 == TOKENIZER.sha256
    assert train_tokenizer(reversed(texts()), VOCAB).sha256 == TOKENIZER.sha256
    assert train_tokenizer(texts(7), VOCAB).sha256 != TOKENIZER.sha256
    assert train_tokenizer(texts(), VOCAB, threads=3, max_ram=1 << 21).sha256 == TOKENIZER.sha256


def by_the_library(documents: list[str], vocab_size: int) -> str:
    """The tokenizer.json that `tokenizers` learns itself."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = LIBRARY.pre_tokenizer
    library.decoder = LIBRARY.decoder
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, max_token_length=64, initial_alphabet=sorted(CHARACTERS),
        special_tokens=[tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)], show_progress=False,
    )  # fmt: skip
    library.train_from_iterator(documents, trainer)
    return library.to_str()


@pytest.mark.parametrize("seed", range(3))
def test_the_file_is_that_which_the_library_learns(seed: int) -> None:
    assert json.loads(by_the_library(texts(seed), 310)) == json.loads(train_tokenizer(texts(seed), 310)._content)


def test_weighted_pieces_count_beyond_32_bits() -> None:
    """In 32 bits "xy" would count 2^32 + 1 - 2^32 = 1 and lose to "ab"; the library's counts are of that size."""
    heavy = [(b"xy", 2**32 + 1), (b"ab", 5), (b"cd", 2**40), (b"xyz", 2**33), (b"ab", 2**31)]
    tokenizer = train_on_pieces(heavy, 260)
    assert [tokenizer.token_bytes(token) for token in range(257, 260)] == [b"cd", b"xy", b"xyz"]
    with pytest.raises(
        InputError, match=r"piece b'ab': its count 0 is not between 1 and 2\^62; leave it out or scale the counts"
    ):
        train_on_pieces([(b"ab", 0)], 257)


def test_weighted_pieces_give_what_their_texts_give() -> None:
    pieces = Counter(piece.encode() for text in texts() for piece in cut(text))
    assert train_on_pieces(pieces.items(), VOCAB).sha256 == TOKENIZER.sha256


SENTENCES = [
    "the end of the day\n    return self.value of the end of 1234 words\n",
    "  the end of  the day, of the end;\r\n\r\n\tthe end of it ",
] * 3
SUPER = train_tokenizer(SENTENCES, 312, superwords=True)
SUPER_LIBRARY = tokenizers.Tokenizer.from_str(SUPER._content)
SUPER_LIBRARY.encode_special_tokens = True


def test_superwords_cross_spaces_but_neither_numbers_nor_line_ends() -> None:
    tokens = [SUPER.token_bytes(token) for token in range(1, SUPER.vocab_size)]
    assert any(b"of the" in token for token in tokens)
    assert not [token for token in tokens if re.search(rb"\w[\r\n]|\d\D|[\r\n]\w", token)]
    assert len(set(tokens)) == len(tokens)


PARTS = ["the end", " of", " the", " ", "\n", "  ", "12", "\t", ", ", "é", "\r\n", " 7", "x" * 70]


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=20).map("".join))
@settings(max_examples=300)
def test_superwords_encode_as_in_the_library_and_come_back(text: str) -> None:
    tokens = SUPER.encode(text)
    assert tokens == SUPER_LIBRARY.encode(text, add_special_tokens=False).ids
    assert SUPER.decode(tokens) == text


def test_superwords_begin_with_the_vocabulary_of_words() -> None:
    documents = texts(3)
    words, both = train_tokenizer(documents, 300), train_tokenizer(documents, 540, superwords=True)
    assert [both.token_bytes(token) for token in range(270)] == [words.token_bytes(token) for token in range(270)]
    assert not any(b" " in words.token_bytes(token)[1:].strip() for token in range(270))


def test_very_long_words_and_lines_come_back() -> None:
    for tokenizer in (TOKENIZER, SUPER):
        text = "x" * 5000 + " " + "ab" * 3000 + "return the" * 500
        assert tokenizer.decode(tokenizer.encode(text)) == text


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


@pytest.mark.parametrize("superwords", [False, True])
def test_transformers_loads_the_file_and_encodes_alike(superwords: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `translate` brings it)"
    )
    ours = SUPER if superwords else TOKENIZER
    ours.save(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), split_special_tokens=True
    )
    assert len(theirs) == ours.vocab_size
    assert theirs.convert_tokens_to_ids(END_OF_TEXT) == ours.end_of_text == 0
    generator = random.Random(4)
    given = [
        "".join(generator.choices([*WORDS, *PARTS, END_OF_TEXT, "\0", "\x85", "\u2028", "\U00020000"], k=20))
        for _ in range(300)
    ]
    for text in [*given, *SENTENCES]:
        tokens = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokens == ours.encode(text)
        assert theirs.decode(tokens, clean_up_tokenization_spaces=False) == text
    as_others_do = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert as_others_do(f"a{END_OF_TEXT}", add_special_tokens=False)["input_ids"] == [*ours.encode("a"), 0]


def test_more_vocabulary_than_the_texts_support_is_refused_with_the_most_they_do() -> None:
    few = ["abab abab abab"] * 4
    with pytest.raises(
        InputError,
        match=r"tokens\.vocab_size: 5000 is more than these texts support \((\d+) merges found\); "
        r"set tokens\.vocab_size to at most (\d+) or add texts",
    ) as refused:
        train_tokenizer(few, 5000)
    most = int(str(refused.value).split("at most ")[1].split()[0])
    assert train_tokenizer(few, most).vocab_size == most
    with pytest.raises(InputError, match=f"at most {most}"):
        train_tokenizer(few, most + 1)


def test_no_text_at_all_supports_the_bytes_alone() -> None:
    assert sorted(train_tokenizer([], 257).decode_bytes(range(1, 257))) == list(range(256))
    with pytest.raises(InputError, match=r"\(0 merges found\); set tokens\.vocab_size to at most 257"):
        train_tokenizer([], 300)
    with pytest.raises(
        InputError, match=r"tokens\.vocab_size: 256 has no room for 256 bytes and the end of text; set it to 257"
    ):
        train_tokenizer(texts(), 256)


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file; run the tokens stage first"):
        Tokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(
        InputError,
        match=r"tokenizer\.json: not a tokenizer\.json that can be used .*; run the tokens stage or the import",
    ):
        Tokenizer.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read as UTF-8 text"):
        Tokenizer.load(path)
    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    other.pre_tokenizer = LIBRARY.pre_tokenizer
    path.write_text(other.to_str())
    with pytest.raises(InputError, match=r"a special token or a byte has no token"):
        Tokenizer.load(path)


def test_the_name_of_a_special_token_in_the_texts_never_becomes_a_token() -> None:
    documents = [f"so {END_OF_TEXT} it is {END_OF_TEXT} and {END_OF_TEXT}{CHAT_TOKENS[1]}"] * 5
    for chat in (False, True):
        tokenizer = train_tokenizer(documents, 285, chat, superwords=True)
        names = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in range(285)]
        assert END_OF_TEXT not in names
        assert any("endoftext" in name for name in names)
        assert (CHAT_TOKENS[1] in names) <= (not chat)
        tokens = tokenizer.encode(documents[0])
        assert not set(tokens) & set(tokenizer.special.values())
        assert tokenizer.decode(tokens) == documents[0]


def test_a_vocabulary_of_before_keeps_its_own_cuts() -> None:
    """Vocabularies that were learned when combining marks were cut from their letters go on so; new ones keep them."""
    text = "हिन्दी भारत की राजभाषा है " * 3
    new = train_tokenizer([text] * 20, 290)
    file = json.loads(new._content)
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = WORDS_WITHOUT_MARKS
    old = Tokenizer(json.dumps(file))
    assert old.library is None
    for tokenizer in (old, new):
        library = tokenizers.Tokenizer.from_str(tokenizer._content)
        assert tokenizer.encode(text) == library.encode(text).ids
    assert new.encode(text) != old.encode(text)
    words = {tokenizer: len(tokenizer.encode(text)) for tokenizer in (old, new)}
    assert words[new] < words[old]


@pytest.mark.parametrize("superwords", [False, True])
def test_digits_can_stay_apart(superwords: bool) -> None:
    texts = [f"There are {n} of 12 apples and {n * 7} pears, x{n}y.\n" for n in range(300)]
    single = train_tokenizer(texts, 270, superwords=superwords, single_digits=True)
    for text in texts[::30]:
        tokens = single.encode(text)
        assert single.decode(tokens) == text
        assert all(sum(byte in b"0123456789" for byte in single.token_bytes(token)) <= 1 for token in tokens)
    together = train_tokenizer(texts, 300, superwords=superwords)
    assert any(
        together.token_bytes(token).strip().isdigit() and len(together.token_bytes(token).strip()) > 1
        for token in range(270)
    )
