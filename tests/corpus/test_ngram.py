"""The Kneser-Ney model against a plain reference, hand-computed values and sources of known entropy."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus import ngram
from lmforge.corpus.ngram import ALPHABET, BEGIN, END, KneserNey
from lmforge.errors import InputError

A, B, Z = b"abz"
few_bytes = st.lists(st.sampled_from(b"ab\x00\xff"), max_size=30).map(bytes)
texts = st.lists(few_bytes, min_size=1, max_size=6)
orders = st.integers(1, 8)


class Reference:
    """The definition in Chen & Goodman (1998), with tuples and dictionaries."""

    def __init__(self, documents: list[bytes], order: int, modified: bool) -> None:
        self.order = order
        counts: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            symbols = [BEGIN] * (order - 1) + list(document) + [END]
            counts.update(tuple(symbols[i : i + order]) for i in range(len(document) + 1))
        self.levels = {}
        for length in range(order, 0, -1):
            histories: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
            for gram, count in counts.items():
                histories[gram[:-1]][gram[-1]] = count
            self.levels[length] = (histories, self.discounts(list(counts.values()), modified))
            counts = Counter(gram[1:] for gram in counts)  # one for each distinct symbol on the left

    @staticmethod
    def discounts(counts: list[int], modified: bool) -> tuple[float, float, float]:
        n = Counter(counts)
        if not modified:
            d = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
            return d, d, d
        if 0 in (n[1], n[2], n[3]):
            return 0.5, 1.0, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        d1, d2, d3 = 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]
        return (d1, d2, d3) if 0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3 else (0.5, 1.0, 1.5)

    def probability(self, history: tuple[int, ...], symbol: int) -> float:
        if len(history) == self.order:
            history = history[1:]
        lower = self.probability(history[1:], symbol) if history else 1 / ALPHABET
        histories, discounts = self.levels[len(history) + 1]
        if history not in histories:
            return lower
        following = histories[history]
        total = sum(following.values())
        taken = {w: discounts[min(count, 3) - 1] for w, count in following.items()}
        return (following.get(symbol, 0) - taken.get(symbol, 0)) / total + sum(taken.values()) / total * lower

    def probabilities(self, document: bytes) -> list[float]:
        symbols = [BEGIN] * (self.order - 1) + list(document)
        return [self.probability(tuple(symbols[i : i + self.order - 1]), byte) for i, byte in enumerate(document)]


@settings(max_examples=300, deadline=None)
@given(texts, few_bytes, orders, st.booleans())
def test_equals_the_plain_reference(documents: list[bytes], scored: bytes, order: int, modified: bool) -> None:
    log2 = KneserNey.train(documents, order, modified).log2_probabilities(scored)
    assert log2.shape == (len(scored),)
    assert np.isfinite(log2).all()
    np.testing.assert_allclose(2**log2, Reference(documents, order, modified).probabilities(scored), rtol=1e-9)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("order", range(1, 9))
def test_equals_the_plain_reference_on_every_byte_value(order: int, modified: bool) -> None:
    random = np.random.default_rng(order)
    documents = [random.permutation(256).astype(np.uint8).tobytes() * 2 for _ in range(3)]
    scored = documents[0][:100] + documents[1][:100] + documents[2][-100:]
    log2 = KneserNey.train(documents, order, modified).log2_probabilities(scored)
    np.testing.assert_allclose(2**log2, Reference(documents, order, modified).probabilities(scored), rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(texts, st.one_of(few_bytes, st.binary(max_size=12)), orders, st.booleans())
def test_probabilities_sum_to_one_after_any_context(
    documents: list[bytes], context: bytes, order: int, modified: bool
) -> None:
    model = KneserNey.train(documents, order, modified)
    for seen_or_not in (context, documents[0], documents[0][:3], b""):
        distribution = model.distribution(seen_or_not)
        assert distribution.shape == (ALPHABET,)
        assert (distribution > 0).all()
        assert distribution.sum() == pytest.approx(1, abs=1e-9)


@given(texts, few_bytes.filter(len), orders)
@settings(max_examples=50, deadline=None)
def test_distribution_agrees_with_log2_probabilities(documents: list[bytes], scored: bytes, order: int) -> None:
    model = KneserNey.train(documents, order)
    assert model.distribution(scored[:-1])[scored[-1]] == pytest.approx(
        2 ** model.log2_probabilities(scored)[-1], rel=1e-12
    )


def test_unigram_by_hand() -> None:
    # Counts: a 2, b 1, end 1. n1 = 2, n2 = 1, so D = 2/4.
    model = KneserNey.train([b"aab"], order=1)
    assert model.discounts == [(0.5, 0.5, 0.5)]
    left = 3 * 0.5 / 4 / ALPHABET
    distribution = model.distribution(b"anything")
    assert distribution[[A, B, END, Z]] == pytest.approx(
        [1.5 / 4 + left, 0.5 / 4 + left, 0.5 / 4 + left, left], abs=1e-15
    )


def test_bigram_by_hand() -> None:
    # Bigrams: begin-a 2, aa 1, ab 2, b-end 2: D = 1/7.
    # Distinct symbols before a: begin and a; before b: a; before the end: b. D = 2/4.
    model = KneserNey.train([b"aab", b"ab"], order=2)
    assert [level[0] for level in model.discounts] == pytest.approx([1 / 2, 1 / 7])
    left = 3 * 0.5 / 4 / ALPHABET
    a, b = 1.5 / 4 + left, 0.5 / 4 + left
    assert model.distribution(b"")[A] == pytest.approx((2 - 1 / 7) / 2 + 1 / 7 / 2 * a, abs=1e-15)
    assert model.distribution(b"a")[B] == pytest.approx((2 - 1 / 7) / 3 + 2 / 7 / 3 * b, abs=1e-15)
    assert model.distribution(b"z")[B] == pytest.approx(b, abs=1e-15), (
        "a history never seen leaves all to the order below"
    )
    assert 2 ** model.log2_probabilities(b"ab") == pytest.approx(
        [model.distribution(b"")[A], model.distribution(b"a")[B]]
    )


def test_three_discounts_by_hand() -> None:
    # Counts of 1, 2, 3, 4: n1 = 4 (with the end), n2 = 3, n3 = 2, n4 = 1. Y = 4/10.
    model = KneserNey.train([b"abc" + b"ddeeff" + b"ggghhh" + b"iiii"], order=1, modified=True)
    assert model.discounts[0] == pytest.approx((1 - 2 * 0.4 * 3 / 4, 2 - 3 * 0.4 * 2 / 3, 3 - 4 * 0.4 * 1 / 2))


def test_discounts_that_cannot_be_estimated_leave_every_byte_possible() -> None:
    assert KneserNey.train([b"aa", b"aa"], order=1).discounts == [(0.5, 0.5, 0.5)]
    assert KneserNey.train([b""], order=1, modified=True).discounts == [(0.5, 1.0, 1.5)]


def test_what_begins_and_ends_a_document_is_learned_and_nothing_crosses_from_one_to_the_next() -> None:
    model = KneserNey.train([b"abcd", b"abcx", b"aby"] * 20, order=3)
    assert model.distribution(b"")[A] > 0.95
    assert model.distribution(b"abcd")[END] > 0.95
    assert model.distribution(b"abcd")[A] < 0.01, "the byte that begins the next document does not follow this one"
    assert model.distribution(b"zzz")[A] < model.distribution(b"")[A] / 4, (
        "the middle of a document is not its beginning"
    )


@settings(max_examples=50, deadline=None)
@given(texts, few_bytes, orders)
def test_the_order_of_documents_does_not_matter(documents: list[bytes], scored: bytes, order: int) -> None:
    one, other = KneserNey.train(documents, order), KneserNey.train(reversed(documents), order)
    np.testing.assert_array_equal(one.log2_probabilities(scored), other.log2_probabilities(scored))


@settings(max_examples=50, deadline=None)
@given(texts, few_bytes, orders, st.integers(1, 40))
def test_chunks_change_nothing(documents: list[bytes], scored: bytes, order: int, chunk: int) -> None:
    whole = KneserNey.train(documents, order).log2_probabilities(scored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "CHUNK", chunk)
        patch.setattr(ngram, "SCORED_AT_ONCE", chunk)
        np.testing.assert_array_equal(KneserNey.train(documents, order).log2_probabilities(scored), whole)


def test_bits_per_byte_counts_bytes_only() -> None:
    model = KneserNey.train([b"hello world", b"hello there"])
    scored = [b"hello", b"", b"world of bytes"]
    bits = -sum(model.log2_probabilities(document).sum() for document in scored)
    assert model.bits_per_byte(iter(scored)) == (pytest.approx(bits / 19, rel=1e-12), 19)


@pytest.mark.parametrize("modified", [False, True])
def test_estimates_the_entropy_of_independent_symbols(modified: bool) -> None:
    share = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    random = np.random.default_rng(1)
    text = random.choice(np.frombuffer(b"\x00 az\xff", np.uint8), 400_000, p=share).tobytes()
    model = KneserNey.train([text[:300_000]], 5, modified)
    assert model.bits_per_byte([text[300_000:]])[0] == pytest.approx(-(share * np.log2(share)).sum(), rel=0.02)


def test_estimates_the_entropy_rate_of_a_second_order_source() -> None:
    # A byte repeats the one two before it with probability 0.9: H(0.9) = 0.469 bits. Order 2 sees nothing of that: 1
    # bit.
    flips = np.random.default_rng(2).random(400_000) < 0.1
    bits = np.empty(400_000, bool)
    bits[0::2], bits[1::2] = (np.logical_xor.accumulate(flips[start::2]) for start in (0, 1))
    text = np.where(bits, A, B).astype(np.uint8).tobytes()
    rate = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert KneserNey.train([text[:300_000]], 3).bits_per_byte([text[300_000:]])[0] == pytest.approx(rate, rel=0.02)
    assert KneserNey.train([text[:300_000]], 2).bits_per_byte([text[300_000:]])[0] == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("order", [0, 9, -1])
def test_refuses_an_order_that_does_not_fit(order: int) -> None:
    with pytest.raises(InputError, match=f"order {order}: only 1 to 8"):
        KneserNey.train([b"text"], order)


def test_refuses_to_train_on_or_score_nothing() -> None:
    with pytest.raises(InputError, match="no document to train on"):
        KneserNey.train([])
    with pytest.raises(InputError, match="hold no byte"):
        KneserNey.train([b"text"]).bits_per_byte([b"", b""])
