"""The merges of the plain algorithm, with its tie-breaking, and those of `tokenizers`."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens import merge
from lmforge.tokens.merge import LONGEST, Learned, learn

Merge = tuple[int, int, int]
BYTES = Learned(np.arange(256, dtype=np.uint8), np.arange(1, 257, dtype=np.int64), np.empty((0, 3), dtype=np.int32))


def learned(words: dict[bytes, int], vocab_size: int) -> Learned:
    symbols = np.frombuffer(b"".join(words), dtype=np.uint8).astype(np.int32)
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    return learn(symbols, ends, np.array(list(words.values()), dtype=np.int64), BYTES, vocab_size)


def plainly(words: dict[bytes, int], vocab_size: int) -> list[Merge]:
    """Count all pairs anew after each merge."""
    tokens = [bytes([byte]) for byte in range(256)]
    texts = [(list(word), count) for word, count in words.items()]
    merges: dict[tuple[int, int], int] = {}
    while len(tokens) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for text, count in texts:
            for pair in pairwise(text):
                if len(tokens[pair[0]]) + len(tokens[pair[1]]) < LONGEST:
                    counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        content = tokens[best[0]] + tokens[best[1]]
        if content not in tokens:
            tokens.append(content)
        merges.setdefault(best, tokens.index(content))
        for text, _ in texts:
            at = 0
            while at + 1 < len(text):
                if (text[at], text[at + 1]) == best:
                    text[at : at + 2] = [tokens.index(content)]
                at += 1
    return [(*pair, new) for pair, new in merges.items()]


words = st.dictionaries(
    st.binary(min_size=1, max_size=3) | st.text("ab", min_size=1, max_size=30).map(str.encode),
    st.integers(1, 9),
    max_size=12,
)


@given(words, st.integers(256, 300))
@settings(max_examples=400, deadline=None)
def test_the_merges_are_those_of_the_plain_algorithm(given_words: dict[bytes, int], vocab_size: int) -> None:
    found = learned(given_words, vocab_size)
    assert [tuple(row) for row in found.merges.tolist()] == plainly(given_words, vocab_size)


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=12), st.integers(1, 50), max_size=30), st.integers(257, 320)
)
@settings(max_examples=200, deadline=None)
def test_the_merges_are_those_of_the_library(given_words: dict[str, int], vocab_size: int) -> None:
    """The library counts the pieces it is given, so each stands as often as it counts. Where two merges make the same
    token, the library merges the places of the second alone; what comes after may differ and is not compared."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    alphabet = [chr(point) for point in range(256, 512)]
    characters = {chr(byte): alphabet[byte] for byte in range(256)}
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        max_token_length=LONGEST,
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
    )
    mapped = {"".join(characters[c] for c in word): count for word, count in given_words.items()}
    library.train_from_iterator([f"{word} " * count for word, count in mapped.items()], trainer)
    names = library.get_vocab()
    theirs = [
        (names[left], names[right], names[left + right])
        for left, right in json.loads(library.to_str())["model"]["merges"]
    ]
    ours = [
        tuple(row)
        for row in learned({word.encode(): count for word, count in given_words.items()}, vocab_size).merges.tolist()
    ]
    twice = next((at for at, row in enumerate(theirs) if row[2] in {other[2] for other in theirs[:at]}), len(theirs))
    assert ours[:twice] == theirs[:twice]


def test_growing_arrays_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    many = {
        bytes(generator.integers(97, 103, size=generator.integers(1, 20)).tolist()): int(generator.integers(1, 9))
        for _ in range(2000)
    }
    whole = learned(many, 1500)
    monkeypatch.setattr(merge, "_PAUSE", 7)
    monkeypatch.setattr(merge, "_FIRST_PAIRS", 64)
    parts = learned(many, 1500)
    assert np.array_equal(whole.merges, parts.merges)
    assert np.array_equal(whole.data, parts.data)
    assert len(whole.ends) == 1500


def test_no_token_has_64_bytes() -> None:
    long = bytes(range(33, 103))  # its beginnings are commoner the shorter they are, so one token grows byte by byte
    given_words = {long[:size]: 2 for size in range(2, 71)} | {b"-" * 1000: 9}
    found = learned(given_words, 5000)
    assert np.diff(found.ends, prepend=0).max() == LONGEST - 1 == 63
    assert [tuple(row) for row in found.merges.tolist()] == plainly(given_words, 5000)


def test_too_many_symbols_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "MOST_SYMBOLS", 3)
    with pytest.raises(InputError, match=r"tokens\.sample_bytes: the distinct pieces of these texts hold 4 symbols"):
        learned({b"abcd": 1}, 300)


def test_progress_is_told_of_every_merge() -> None:
    told: list[int] = []
    symbols = np.frombuffer(b"abab", dtype=np.uint8).astype(np.int32)
    learn(symbols, np.array([4]), np.array([9], dtype=np.int64), BYTES, 300, told.append)
    assert sum(told) == 2
