"""Exact duplicates: layout does not matter, anything else does. Near duplicates: planted ones are found, others are
not."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.overlap import duplicates
from lmforge.corpus.overlap.duplicates import (
    ExactDuplicates,
    Sketches,
    candidate_pairs,
    exact_pairs,
    in_common,
    jaccard_for,
    line_hashes,
    repeated_lines,
    resolve,
    signature,
    similarities,
    similarity_for,
    text_digest,
    verified_pairs,
)  # fmt: skip
from lmforge.corpus.overlap.words import read_words

WORDS = st.lists(st.text(st.characters(categories=("L", "N")), min_size=1), min_size=1, max_size=8)


@given(WORDS)
def test_layout_makes_no_difference(words: list[str]) -> None:
    assert text_digest(" ".join(words)) == text_digest("\n\t".join(words) + "\n")
    assert text_digest(" ".join(words)) != text_digest("".join(words) + "!")


def test_a_set_of_digests_knows_what_it_has_seen() -> None:
    seen = ExactDuplicates()
    assert [seen.add(text_digest(text)) for text in ("a b", "a\nb", "ab")] == [True, False, True]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=30))
def test_the_first_of_equal_documents_stays(digests: list[tuple[int, int]]) -> None:
    records = np.array([(*digest, number) for number, digest in enumerate(digests)], np.uint64).reshape(-1, 3).T
    pairs = exact_pairs(records[:, np.lexsort(records[::-1])])
    kept_of = dict(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
    assert kept_of == {
        number: digests.index(digest) for number, digest in enumerate(digests) if digests.index(digest) != number
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), unique=True, max_size=30))
def test_candidates_connect_every_bucket_and_nothing_else(records: list[tuple[int, int]]) -> None:
    pairs = candidate_pairs(np.array(sorted(records), np.uint64).reshape(-1, 2).T)
    assert all(one < other for one, other in pairs.T)
    together = {frozenset((a, b)) for key, a in records for other, b in records if key == other and a != b}
    assert {frozenset(map(int, pair)) for pair in pairs.T} <= together
    for key in {key for key, _ in records}:
        bucket = sorted(document for other, document in records if other == key)
        assert all([bucket[0], document] in pairs.T.tolist() for document in bucket[1:])


@given(st.floats(0.01, 1), st.integers(1, 5))
@settings(deadline=None)  # compiled at the first call
def test_similarity_and_jaccard_are_inverse(similarity: float, words: int) -> None:
    assert similarity_for(jaccard_for(similarity, words), words) == pytest.approx(similarity)


def vocabulary(count: int) -> list[str]:
    rng = random.Random(7)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(count)]


def edited(words: list[str], share: float, pool: list[str], rng: random.Random) -> list[str]:
    """A share of the words replaced, removed or joined by another, one by one."""
    result = list(words)
    for at in sorted(rng.sample(range(len(words)), round(share * len(words))), reverse=True):
        result[at : at + 1] = rng.choice(([rng.choice(pool)], [], [result[at], rng.choice(pool)], [rng.choice(pool)]))
    return result


def jaccard(one: list[str], other: list[str], words: int) -> float:
    runs = [{tuple(each[at : at + words]) for at in range(max(1, len(each) - words + 1))} for each in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@pytest.mark.parametrize("length", [1, 3, 40, 200, 5000])
def test_similarity_is_close_to_the_true_one(length: int) -> None:
    rng, pool = random.Random(1), vocabulary(500)
    words = rng.choices(pool, k=length)
    for other in (words, edited(words, 0.15, pool, rng), words[: length // 2] + rng.choices(pool, k=length // 2)):
        true = in_common(*(jaccard(words, other, count) for count in (2, 4)))
        sketches = np.stack([signature(read_words(" ".join(each)))[1] for each in (words, other)])
        assert similarities(sketches[:1], sketches[1:])[0] == pytest.approx(true, abs=0.08)


@pytest.mark.parametrize("share", [0.5, 0.65, 0.8, 0.95])
def test_words_in_common_are_counted_alike_whether_edited_one_by_one_or_in_a_passage(share: float) -> None:
    rng, pool = random.Random(5), vocabulary(20_000)
    words, others = rng.choices(pool, k=4000), rng.choices(pool, k=4000)
    passage = words[round((1 - share) * 4000) :] + others[: round((1 - share) * 4000)]
    scattered = [word if rng.random() < share else other for word, other in zip(words, others, strict=True)]
    for other in (passage, scattered):
        assert in_common(*(jaccard(words, other, count) for count in (2, 4))) == pytest.approx(share, abs=0.02)


def near(texts: list[list[str]], tmp_path: Path, similarity: float = 0.75) -> duplicates.Clusters:
    """What of these texts goes."""
    keys, sketches = zip(*(signature(read_words(" ".join(words))) for words in texts), strict=True)
    np.stack(sketches).tofile(tmp_path / "sketches.bin")
    records = np.stack([np.concatenate(keys), np.repeat(np.arange(len(texts), dtype=np.uint64), duplicates.BANDS)])
    where = Sketches([tmp_path / "sketches.bin"])
    pairs = verified_pairs(candidate_pairs(records[:, np.lexsort(records[::-1])]), where, similarity)
    return resolve(pairs, where, similarity)


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    rng, pool = random.Random(2), vocabulary(3000)
    # some words far more frequent than others, as in a language
    frequent = [pool[int(3000 * rng.random() ** 3)] for _ in range(100_000)]
    originals = [rng.choices(frequent, k=rng.randint(30, 400)) for _ in range(1000)]
    copies = [edited(words, rng.uniform(0.0, 0.2), pool, rng) for words in originals[:300]]
    clusters = near(originals + copies, tmp_path)
    dropped_pairs = set(zip(clusters.dropped.tolist(), clusters.kept.tolist(), strict=True))
    planted = {(1000 + number, number) for number in range(300)}
    assert len(dropped_pairs & planted) >= 0.95 * len(planted)
    assert not dropped_pairs - planted
    assert (clusters.similarity >= 0.75).all()
    assert clusters.sizes.sum() == 2 * len(dropped_pairs)


def test_a_chain_of_similar_texts_does_not_drop_its_far_end(tmp_path: Path) -> None:
    rng, pool = random.Random(3), vocabulary(2000)
    chain = [rng.choices(pool, k=200)]
    for step in range(6):
        chain.append(chain[-1][: 30 * step] + rng.choices(pool, k=30) + chain[-1][30 * (step + 1) :])
    clusters = near(chain, tmp_path)
    assert clusters.sizes.tolist() == [7]
    kept = set(range(7)) - set(clusters.dropped.tolist())
    assert 0 in kept
    assert len(kept) >= 2  # the last shares a tenth of its words with the first
    assert set(clusters.kept.tolist()) <= kept


def test_texts_of_the_same_few_words_are_not_duplicates(tmp_path: Path) -> None:
    rng = random.Random(4)
    assert not near(
        [rng.choices(["one", "two", "three", "four", "five", "six", "seven", "eight"], k=300) for _ in range(60)],
        tmp_path,
    ).dropped.size
    # numbers are not all alike
    assert not near([[f"{rng.random():.6f}" for _ in range(50)] for _ in range(60)], tmp_path).dropped.size


def test_repeated_lines_are_counted_over_distinct_documents() -> None:
    words = read_words("Subscribe to our newsletter for more!\nshort\nSUBSCRIBE to our newsletter: for more\n")
    hashes = line_hashes(words)
    assert hashes[0] == hashes[2] > 0 == hashes[1] == hashes[3]
    line, other = hashes[0], np.uint64(5)
    records = np.array([[line, line, line, other, other], [1, 2, 3, 1, 2]], np.uint64)
    assert repeated_lines(records, np.array([], np.uint64), 3).tolist() == [[int(line)], [3]]
    assert repeated_lines(records, np.array([2], np.uint64), 3).size == 0
    assert repeated_lines(records, np.array([3], np.uint64), 2).tolist() == sorted(
        [[5, int(line)], [2, 2]], key=max, reverse=True
    )
