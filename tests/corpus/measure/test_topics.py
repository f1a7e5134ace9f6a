"""Planted topics are found again; coherence by hand."""

import math

import numpy as np
import pytest

from lmforge.corpus.measure.topics import coherence, find_topics, topic_figures

VOCABULARIES = {
    "sea": ["ship", "harbour", "sail", "captain", "anchor", "wave", "tide", "mast", "deck", "storm", "rope", "island"],
    "kitchen": [
        "flour",
        "butter",
        "oven",
        "sugar",
        "bake",
        "spoon",
        "dough",
        "kettle",
        "cream",
        "recipe",
        "plate",
        "salt",
    ],
    "court": [
        "judge",
        "lawyer",
        "trial",
        "witness",
        "verdict",
        "appeal",
        "statute",
        "jury",
        "crime",
        "guilty",
        "oath",
        "bench",
    ],
}


def planted(each: int = 40) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for label, vocabulary in VOCABULARIES.items():
        for _ in range(each):
            texts.append(" ".join(rng.choice([*vocabulary, "people", "things", "often"], 40)))
            labels.append(label)
    return texts, labels


def test_planted_topics_are_found() -> None:
    texts, labels = planted()
    topics = find_topics(texts, 3)
    assert topics is not None
    topic_of = {label: topics.of_text[labels.index(label)] for label in VOCABULARIES}
    assert len(set(topic_of.values())) == 3
    assert np.mean([topic == topic_of[label] for topic, label in zip(topics.of_text, labels, strict=True)]) > 0.98
    for label, topic in topic_of.items():
        assert len(set(topics.words[topic]) & set(VOCABULARIES[label])) >= 9
    assert topics.shares.sum(axis=1) == pytest.approx(np.ones(len(texts)))
    assert min(topics.npmi) > 0.2
    again = find_topics(texts, 3)
    assert again is not None
    assert np.array_equal(topics.shares, again.shares)


def test_coherence_by_hand() -> None:
    present = np.array([[1, 1], [1, 1], [1, 0], [0, 0]], bool)
    npmi, umass = coherence(present)
    assert npmi == pytest.approx(math.log((2 / 4) / (3 / 4 * 2 / 4)) / -math.log(2 / 4))
    assert umass == pytest.approx(math.log((2 + 1) / 3))
    assert coherence(np.array([[1, 0], [0, 1]], bool))[0] == -1
    assert coherence(np.ones((4, 2), bool))[0] == 1
    assert coherence(np.ones((4, 1), bool)) == (0.0, 0.0)


def test_too_little_text_has_no_topics() -> None:
    assert find_topics(["a few words"] * 3, 5) is None
    assert find_topics(["1 2 3 4"] * 40, 5) is None
    assert topic_figures([])["topics"] == []


def test_figures_are_ordered_by_share_and_named() -> None:
    texts, _ = planted()
    figures = topic_figures(texts)
    shares = [topic["share"] for topic in figures["topics"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert all(topic["name"] == ", ".join(topic["words"][:3]) for topic in figures["topics"])
