"""Statistics against hand counts; the same for any split of the documents."""

import json
from collections import Counter
from hashlib import sha256
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.measure import counts, vocabulary
from lmforge.corpus.measure.counts import Statistics
from lmforge.corpus.measure.entropy import miller_madow
from lmforge.corpus.sources.kinds import Document


def document(text: str, genre: str = "web", source: str = "s") -> Document:
    return Document(id="x", text=text, source=source, genre=genre, meta={})


def measured(texts: list[str]) -> dict[str, Any]:
    statistics = Statistics()
    for text in texts:
        statistics.add(document(text), sha256(text.encode()).digest())
    return statistics.result()


def test_words_of_scripts_without_blanks_are_signs() -> None:
    result = measured(["我买书。我看书。", "ฉัน ฉัน", "the cat"])
    assert result["words"] == 6 + 4 + 2
    assert ["书。", 2] in result["top_words"]
    assert result["distinct_words"] == 4 + 2 + 2


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


def test_entropies_name_their_sample_and_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {number} of a few" for number in range(300)]
    entropy = measured(texts)["entropy"]
    assert all(entry["definition"] and entry["value"] > 0 for entry in entropy.values())
    words, size = sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)
    assert all(
        entry["bits_per_word"] * words == pytest.approx(entry["bits_per_byte"] * size) for entry in entropy.values()
    )
    whole = "".join(texts).encode()
    assert entropy["unigram_bits_per_byte"]["value"] == pytest.approx(miller_madow(list(Counter(whole).values())))
    assert entropy["unigram_bits_per_byte"]["sample_bytes"] == len(whole)
    ordered = b"".join(sorted((text.encode() for text in texts), key=lambda data: sha256(data).digest()))
    packed = len(zstandard.ZstdCompressor(level=19).compress(ordered))
    assert entropy["compression_bits_per_byte"]["value"] == pytest.approx(8 * packed / len(whole))
    monkeypatch.setattr(counts, "SAMPLE_BYTES", 1000)
    few = measured(texts)["entropy"]["compression_bits_per_byte"]
    assert 900 < few["sample_bytes"] <= 1000


TEXTS = [f"some text {number} of {number % 3} " * (3 + number) for number in range(12)]


@given(st.permutations(TEXTS), st.lists(st.integers(0, 2), min_size=12, max_size=12), st.sampled_from([60, 10_000]))
@settings(max_examples=40, deadline=None)
def test_any_split_over_tasks_gives_the_same_result(texts: list[str], tasks: list[int], sample: int) -> None:
    before, counts.SAMPLE_BYTES = counts.SAMPLE_BYTES, sample
    try:
        parts = [Statistics() for _ in range(3)]
        for text, task in zip(texts, tasks, strict=True):
            parts[task].add(document(text, f"genre {len(text) % 2}"), sha256(text.encode()).digest())
        whole = Statistics()
        for text in TEXTS:
            whole.add(document(text, f"genre {len(text) % 2}"), sha256(text.encode()).digest())
        merged = Statistics()
        for part in parts:
            merged.merge(Statistics.from_state(json.loads(json.dumps(part.state()))))
        assert merged.state() == whole.state()
        assert merged.result() == whole.result()
        assert merged.documents == len(TEXTS)
    finally:
        counts.SAMPLE_BYTES = before


def test_nothing_added_is_a_result_too() -> None:
    result = Statistics().result()
    assert result["documents"] == result["words"] == result["distinct_words"] == 0
    assert all(entry["value"] == 0 for entry in result["entropy"].values())


def test_beyond_the_bound_words_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(["common"] * 50 + [f"w{number}-{word}" for word in range(50)]) for number in range(100)]
    exact = measured(texts)
    assert exact["words_exact"]
    assert exact["vocabulary_growth"][-1] == {"words": 10_000, "distinct": 5001}
    monkeypatch.setattr(vocabulary, "MOST_DISTINCT", 2000)
    rough = measured(texts)
    assert not rough["words_exact"]
    assert rough["distinct_words"] == pytest.approx(exact["distinct_words"], rel=0.1)
    assert rough["top_words"][0] == ["common", 5000]
    values = [result["entropy"]["unigram_bits_per_word"]["value"] for result in (rough, exact)]
    assert values[0] == pytest.approx(values[1], rel=0.05)
