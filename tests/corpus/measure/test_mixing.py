"""The code length is an upper bound of a known entropy, and close to it; it learns contexts and words; no input breaks
it."""

import lzma
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.measure.mixing import bits_per_byte


@pytest.mark.parametrize("chances", [[0.5, 0.5], [0.5, 0.2, 0.1, 0.1, 0.05, 0.05], [0.9, 0.1], [1 / 16] * 16])
def test_a_source_of_known_entropy(chances: list[float]) -> None:
    p = np.array(chances)
    data = bytes((np.random.default_rng(1).choice(len(p), 200_000, p=p) + 97).astype(np.uint8))
    entropy = float(-(p * np.log2(p)).sum())
    assert 0.99 * entropy < bits_per_byte(data) < 1.05 * entropy


def test_a_markov_source() -> None:
    """Stays on its letter with probability 0.9, else goes on to the next of four."""
    rng = np.random.default_rng(2)
    data = bytes((np.cumsum(rng.random(200_000) < 0.1) % 4 + 97).astype(np.uint8))
    entropy = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1)
    assert 0.98 * entropy < bits_per_byte(data) < 1.05 * entropy


def test_text_is_told_shorter_than_by_lzma() -> None:
    rng = random.Random(3)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(500)]
    data = " ".join(words[int(500 * rng.random() ** 3)] for _ in range(30_000)).encode()
    assert bits_per_byte(data) < 0.9 * 8 * len(lzma.compress(data)) / len(data)


@given(st.binary(max_size=300))
@settings(max_examples=30)
def test_any_bytes(data: bytes) -> None:
    assert 0 <= bits_per_byte(data) < 14
    assert bits_per_byte(data) == bits_per_byte(data)
