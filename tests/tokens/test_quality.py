"""Figures that can be worked out by hand."""

import math

import numpy as np
import pytest

from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.quality import RARE, quality

TOKENIZER = train_tokenizer(["ab ab ab"], 259)  # "ab" and " ab"
AB, SPACE_AB = 257, 258


def document(text: str, genre: str = "books", **meta: str) -> dict[str, object]:
    return {"text": text, "genre": genre, "meta": meta}


def test_a_sign_of_a_script_without_blanks_is_a_word() -> None:
    assert quality(TOKENIZER, [], [document("我买书")])["fertility"] == 9 / 3  # of bytes


def test_length_and_fertility_by_genre_and_language() -> None:
    found = quality(
        TOKENIZER, [], [document("ab ab", language="en"), document("x é", "web", language="fr"), document("", "web")]
    )
    assert found["bytes_per_token_by_genre"] == {"books": 5 / 2, "web": 1.0}
    assert found["fertility_by_genre"] == {"books": 1.0, "web": 4 / 2}
    assert found["bytes_per_token_by_language"] == {"en": 5 / 2, "fr": 1.0, "unknown": 0.0}
    assert found["bytes_per_token"] == 9 / 6
    assert found["fertility"] == 6 / 4


def test_even_use_of_the_whole_vocabulary_is_efficiency_1() -> None:
    found = quality(TOKENIZER, [np.repeat(np.arange(1, 259, dtype=np.int32), 50)], [])
    assert found["entropy_bits"] == pytest.approx(math.log2(258))
    assert found["renyi_efficiency"] == pytest.approx(1)
    assert found["vocabulary_used"] == 1
    assert (found["tokens_unseen"], found["tokens_rare"], found["rare_examples"]) == (0, 0, [])


def test_entropy_and_renyi_of_a_known_distribution() -> None:
    found = quality(TOKENIZER, [np.array([AB] * 3, dtype=np.uint16), np.array([0, SPACE_AB], dtype=np.uint16)], [])
    assert found["entropy_bits"] == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert found["renyi_efficiency"] == pytest.approx(math.log2(0.75**2.5 + 0.25**2.5) / (1 - 2.5) / math.log2(258))


def test_rare_tokens_are_counted_and_the_rarest_named() -> None:
    found = quality(TOKENIZER, [np.array([AB] * RARE + [SPACE_AB] * (RARE - 1), dtype=np.int32)], [])
    assert found["tokens_unseen"] == 256
    assert found["tokens_rare"] == 257
    assert found["vocabulary_used"] == 2 / 258
    assert len(found["rare_examples"]) == 20
    assert found["rare_examples"][0] == "!"


def test_no_text_has_no_figures() -> None:
    found = quality(TOKENIZER, [], [])
    assert found["entropy_bits"] is None
    assert found["renyi_efficiency"] is None
    assert found["bytes_per_token"] == 0
