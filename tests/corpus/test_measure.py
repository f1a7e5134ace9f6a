"""Statistics against hand counts; the entropy correction against a known distribution."""

import math
from collections import Counter
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus import measure
from lmforge.corpus.measure import Statistics, miller_madow
from lmforge.corpus.sources import Document


def document(text: str, genre: str = "web", source: str = "s") -> Document:
    return Document(id="x", text=text, source=source, genre=genre, meta={})


def measured(texts: list[str]) -> dict[str, Any]:
    statistics = Statistics()
    for text in texts:
        statistics.add(document(text), sha256(text.encode()).digest())
    return statistics.result()


def test_counts_by_hand() -> None:
    statistics = Statistics()
    statistics.add(document("the cat\nthe dog é\n", "web", "a"), b"1")
    statistics.add(document("code", "code", "b"), b"2")
    result = statistics.result()
    assert [result[name] for name in ("documents", "bytes", "characters", "words", "lines")] == [2, 23, 22, 6, 3]
    assert result["genres"]["code"] == {"documents": 1, "bytes": 4, "characters": 4, "words": 1, "lines": 1}
    assert list(result["sources"]) == ["a", "b"]
    assert result["lengths"] == {"2": 1, "4": 1}  # 4 bytes and 19 bytes
    assert result["ascii_share"] == pytest.approx(21 / 23)
    assert result["top_words"][0] == ["the", 2]
    assert result["distinct_words"] == 5


def test_miller_madow_removes_most_of_the_bias() -> None:
    generator = np.random.default_rng(0)
    symbols, drawn, truth = 1000, 3000, math.log2(1000)
    plain, corrected = [], []
    for _ in range(20):
        counts = np.bincount(generator.integers(symbols, size=drawn), minlength=symbols)
        share = counts[counts > 0] / drawn
        plain.append(-(share * np.log2(share)).sum())
        corrected.append(miller_madow(counts))
    assert truth - np.mean(plain) > 0.2
    assert abs(truth - np.mean(corrected)) < 0.05


def test_miller_madow_exact_values() -> None:
    assert miller_madow([]) == 0
    assert miller_madow([5]) == 0
    assert miller_madow([2, 2, 0]) == pytest.approx(1 + 1 / (2 * 4 * math.log(2)))


def test_entropies_name_their_sample_and_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {number} of a few" for number in range(300)]
    entropy = measured(texts)["entropy"]
    assert all(entry["definition"] and entry["value"] > 0 for entry in entropy.values())
    whole = "".join(texts).encode()
    assert entropy["unigram_bits_per_byte"]["value"] == pytest.approx(miller_madow(list(Counter(whole).values())))
    assert entropy["unigram_bits_per_byte"]["sample_bytes"] == len(whole)
    ordered = b"".join(sorted((text.encode() for text in texts), key=lambda data: sha256(data).digest()))
    packed = len(zstandard.ZstdCompressor(level=19).compress(ordered))
    assert entropy["compression_bits_per_byte"]["value"] == pytest.approx(8 * packed / len(whole))
    monkeypatch.setattr(measure, "SAMPLE_BYTES", 1000)
    few = measured(texts)["entropy"]["compression_bits_per_byte"]
    assert 900 < few["sample_bytes"] <= 1000


@given(st.permutations([f"some text {number} " * 3 for number in range(12)]))
@settings(max_examples=20, deadline=None)
def test_order_changes_nothing_but_vocabulary_growth(texts: list[str]) -> None:
    result, reference = measured(texts), measured(sorted(texts))
    result.pop("vocabulary_growth")
    reference.pop("vocabulary_growth")
    assert result == reference


def test_vocabulary_growth_and_forgetting_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["common"] * 50 + [f"w{number}-{word}" for word in range(50)]) for number in range(100)]
    exact = measured(texts)
    assert exact["words_exact"]
    growth = exact["vocabulary_growth"]
    assert [point["words"] for point in growth] == sorted({point["words"] for point in growth})
    assert growth[0] == {"words": 1100, "distinct": 551}
    monkeypatch.setattr(measure, "MOST_DISTINCT", 500)
    statistics = Statistics()
    for text in texts:
        statistics.add(document(text), b"")
        assert len(statistics.words) <= 550
    rough = statistics.result()
    assert not rough["words_exact"]
    assert rough["distinct_words"] == exact["distinct_words"]
    assert rough["top_words"][0] == ["common", 5000]
    values = [result["entropy"]["unigram_bits_per_word"]["value"] for result in (rough, exact)]
    assert values[0] == pytest.approx(values[1])
