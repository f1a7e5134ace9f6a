"""Against sources of known entropy, and against the byte model that counts in another way."""

import math

import numpy as np
import pytest

from lmforge.corpus.measure.conditional import of_bytes, of_words
from lmforge.corpus.ngram import KneserNey


def test_words_of_scripts_without_blanks_are_signs() -> None:
    told = of_words(["我买书。我看书。"], ["我看书。"], 2)
    assert (told.trained, told.scored, told.unseen) == (6, 3, 0.0)


def independent(symbols: int, length: int, seed: int) -> tuple[np.ndarray, float]:
    share = 1 / np.arange(1, symbols + 1)
    share /= share.sum()
    return np.random.default_rng(seed).choice(symbols, length, p=share), float(-(share * np.log2(share)).sum())


def markov(states: int, memory: int, length: int, seed: int) -> tuple[np.ndarray, float]:
    """A chain whose next state depends on the last `memory` ones, and its entropy rate, from how often each history
    occurs."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(states, 0.5), states**memory)
    steps, uniform = np.cumsum(share, axis=1), rng.random(length)
    chain, history, seen = np.empty(length, np.int64), 0, np.zeros(states**memory)
    for place in range(length):
        seen[history] += 1
        chain[place] = min(np.searchsorted(steps[history], uniform[place]), states - 1)
        history = (history * states + chain[place]) % states**memory
    terms = np.where(share > 0, -share * np.log2(np.maximum(share, 1e-300)), 0.0).sum(axis=1)
    return chain, float(terms @ seen / length)


def as_words(source: np.ndarray) -> str:
    return " ".join(f"w{symbol}" for symbol in source)


def test_independent_words_within_one_percent() -> None:
    source, truth = independent(500, 240_000, 0)
    entropy = of_words([as_words(source[:200_000])], [as_words(source[200_000:])], 1)
    assert entropy.bits[0] == pytest.approx(truth, rel=0.01)
    assert (entropy.trained, entropy.scored) == (200_000, 40_000)


@pytest.mark.parametrize(("states", "memory"), [(20, 1), (6, 2), (4, 3)])
def test_markov_words_within_one_percent(states: int, memory: int) -> None:
    source, truth = markov(states, memory, 240_000, 1)
    entropy = of_words([as_words(source[:200_000])], [as_words(source[200_000:])], 5)
    assert entropy.bits[memory] == pytest.approx(truth, rel=0.01)
    assert all(bits > truth * 1.02 for bits in entropy.bits[:memory])  # too short a memory pays for it
    assert entropy.bits[memory + 1] < truth * 1.02  # too long a one hardly


@pytest.mark.parametrize(("states", "memory"), [(16, 1), (5, 2)])
def test_markov_bytes_within_one_percent(states: int, memory: int) -> None:
    source, truth = markov(states, memory, 240_000, 2)
    data = (source + 65).astype(np.uint8).tobytes()
    assert of_bytes([data[:200_000]], [data[200_000:]], memory + 1).bits[memory] == pytest.approx(truth, rel=0.01)


def test_the_same_as_the_byte_model_but_for_ends_of_documents() -> None:
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("abcde "), 400, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.2])).encode() for _ in range(40)]
    ours = of_bytes(texts[:30], texts[30:], 3).bits[2]
    theirs, _ = KneserNey.train(texts[:30], 3, modified=True).bits_per_byte(texts[30:])
    assert ours == pytest.approx(theirs, rel=0.005)  # the byte model also spends a little on the end of a document


def test_a_word_never_seen_costs_its_spelling() -> None:
    train = ["one two three four " * 50]
    known, new = of_words(train, ["two three"], 2), of_words(train, ["two unheard-of"], 2)
    assert known.unseen == 0
    assert new.unseen == 0.5
    assert math.isfinite(new.bits[1])
    assert new.bits[1] > known.bits[1] + 10


def test_no_document_sees_another() -> None:
    apart = of_words(["a b", "c d"] * 30, ["b c"], 2).bits[1]
    together = of_words(["a b c d"] * 30, ["b c"], 2).bits[1]
    assert apart > together + 0.5


def test_nothing_to_learn_from_or_to_score() -> None:
    assert of_words([], ["a b"], 3).bits == (0, 0, 0)
    assert of_words(["a b"], [], 3).scored == 0
    assert of_bytes([b""], [b"ab"], 2).bits == (0, 0)
