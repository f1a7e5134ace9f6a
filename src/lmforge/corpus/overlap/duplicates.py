"""Which texts say the same thing: exact and near duplicates, lines that many documents repeat.

    text ─▶ text_digest ────────────────────────────────▶ exact: equal digests
         └▶ words ─▶ pairs of words ─▶ MinHash ─▶ bands ─▶ candidates ─▶ sketches compared ─▶ clusters ─▶ kept, dropped

Candidates come from locality-sensitive hashing (Broder 1997, "On the resemblance and containment of documents"): two
texts whose sets of word pairs have Jaccard similarity J agree in each of `PERMUTATIONS` minima with probability J, and
in all `ROWS` minima of at least one of `BANDS` bands with probability 1 - (1 - J^ROWS)^BANDS. Candidates are then
compared by their pairs of words and by their runs of `SKETCHED` words (`in_common`): pairs alone would take long texts
of the same few words for copies, either alone texts that share a passage. A sketch holds the low bytes of the minima of
the pairs (b-bit MinHash, Li & König 2010) and the smallest hashes of the runs (bottom-k, Cohen & Kaplan 2007: exact for
texts of up to `SKETCH` words). Words are compared as they stand, numbers too. Runs that a large share of all documents
have (a preamble, a licence, a form) do not count where the rest of two texts can be compared (`shared.py`).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmforge.compiled import compiled
from lmforge.corpus.overlap.shared import SAMPLE, common_runs
from lmforge.corpus.overlap.words import MULTIPLIER, U64, Words, mixed, run_hash
from lmforge.corpus.spool import rows_of

# at J = 0.47 (a fifth of the words replaced, one by one) a pair is a candidate with probability 0.98
ROWS, BANDS = 4, 80
PERMUTATIONS = ROWS * BANDS
SHINGLE = 2  # words; longer runs break too often: a word replaced breaks as many shingles as a shingle has words
SKETCHED = 4  # words: enough that texts of the same few words differ
SKETCH = 256  # hashes of runs; standard error of their Jaccard similarity √(J (1 - J) / SKETCH), at most 0.031
LEAST_OWN = 8  # runs that are not common, of two texts together, by which they can be judged
SKETCH_WIDTH = SKETCH + PERMUTATIONS // 4  # 32-bit numbers: the runs' hashes, then the pairs' minima, a byte each
_NONE = np.uint32(0xFFFFFFFF)  # fills the sketch of a shorter text
ROW_BITS = 32  # a document's number: its task above these bits, its row in the task below
LINE_LETTERS = (
    24  # of English, or what is worth as much; a shorter line ("return None", "* * *") is repeated without being a copy
)
BATCH = 2048  # sketches, 1.3 KB each, held at once
LEADERS = 1000  # kept documents of one cluster that a member is compared with
_random = np.random.default_rng(0x0E1A)
_FACTORS = _random.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
_OFFSETS = _random.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)


def text_digest(text: str) -> bytes:
    """SHA-256 of the text with each run of whitespace made one space: what decides duplicates, split, sampling and
    order.

    Texts that differ only in layout share a digest, so they never fall on both sides of the train/test line.
    """
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


class ExactDuplicates:
    """Remembers the digests it was given: about 100 bytes of memory for each distinct text, so for some of a corpus
    only."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def add(self, digest: bytes) -> bool:
        """Whether this `text_digest` is new; it is remembered (its first 16 bytes: a chance match below 1e-18 at 10^10
        texts)."""
        before = len(self._seen)
        self._seen.add(digest[:16])
        return len(self._seen) > before


def jaccard_for(similarity: float, words: int) -> float:
    """Jaccard similarity of the runs of so many words of two texts that have a share `similarity` of their words in
    common, the rest replaced one by one.

    A run of n words survives when all its words do, sⁿ; each text then has 1 - sⁿ runs of its own: J = sⁿ / (2 - sⁿ).
    """
    return similarity**words / (2 - similarity**words)


@compiled
def similarity_for(jaccard: Any, words: Any) -> Any:
    """The inverse of `jaccard_for`: the share of words that two texts have in common, in order."""
    return (2 * jaccard / (1 + jaccard)) ** (1 / words)


@compiled
def in_common(pairs: Any, runs: Any) -> Any:
    """Share of words, in order, that two texts have in common, by the Jaccard similarities of their pairs of words and
    of their runs of `SKETCHED` words.

    A share 2J / (1 + J) of a text's runs of n words is in the other text too. Let a word be in common with probability
    s, and with probability r if the word before it is: that share is s·rⁿ⁻¹, and those of pairs and of runs together
    give r and s. Words edited one by one have r = s, one passage in common has r near 1. As r is never below s, s is at
    most the n-th root of either share.
    """
    q, p = 2 * pairs / (1 + pairs), 2 * runs / (1 + runs)
    bound = min(similarity_for(pairs, SHINGLE), similarity_for(runs, SKETCHED))
    return min(bound, q * (q / p) ** ((SHINGLE - 1) / (SKETCHED - SHINGLE))) if p > 0 else 0.0


def signature(words: Words) -> tuple[U64, NDArray[np.uint32]]:
    """(BANDS) band keys and the (SKETCH_WIDTH) sketch of a text; about 80 ns a word."""
    keys, minima = _bands(words.hashes, _FACTORS, _OFFSETS)
    return keys, np.concatenate([_sketch(words.hashes), minima.view(np.uint32)])


@compiled
def _shingle(words: Any, first: Any, size: Any) -> Any:
    total = np.uint64(0)
    for word in words[first : first + size]:
        total = total * MULTIPLIER + word
    return np.uint32(mixed(total) >> np.uint64(32))


@compiled
def _sketch(words: Any) -> Any:
    count = max(len(words) - SKETCHED + 1, min(len(words), 1))
    sketch = np.full(SKETCH, _NONE, np.uint32)
    limit = 4.0 * SKETCH / max(count, 1) * 2.0**32  # about four times as many as are needed lie below it
    while True:
        below, size = np.empty(count, np.uint32), 0
        for first in range(count):
            value = _shingle(words, first, SKETCHED)
            if value < limit and value != _NONE:
                below[size] = value
                size += 1
        distinct = np.unique(below[:size])
        if len(distinct) >= SKETCH or limit >= 2.0**32:
            sketch[: min(len(distinct), SKETCH)] = distinct[:SKETCH]
            return sketch
        limit = 2.0**33  # a text that repeats itself: take all


@compiled
def _bands(words: Any, factors: Any, offsets: Any) -> Any:
    count = len(factors)
    minima = np.full(count, 0xFFFFFFFF, np.uint32)
    for first in range(max(len(words) - SHINGLE + 1, min(len(words), 1))):
        value = _shingle(words, first, SHINGLE)
        # an affine map modulo 2^32 stands for a permutation: eight of them per AVX2 instruction
        for index in range(count):
            minima[index] = min(minima[index], np.uint32(value * factors[index] + offsets[index]))
    keys = np.empty(BANDS, np.uint64)
    for band in range(BANDS):
        key = np.uint64(band)
        for row in range(ROWS):
            key = mixed(key * MULTIPLIER + np.uint64(minima[band * ROWS + row]))
        keys[band] = key
    return keys, (minima & np.uint32(255)).astype(np.uint8)


_NO_RUNS = np.empty(0, np.uint32)


def similarities(
    ones: NDArray[np.uint32], others: NDArray[np.uint32], common: NDArray[np.uint32] = _NO_RUNS
) -> NDArray[np.float64]:
    """(pairs) estimated share of words in common, in order, of texts by their (pairs, SKETCH_WIDTH) sketches.

    `common` (ascending) are runs that a large share of all documents have. Where two texts differ in passages, not in
    words here and there, they are judged by what they have besides these.
    """
    result: NDArray[np.float64] = _similarities(
        ones, others, ones[:, SKETCH:].copy().view(np.uint8), others[:, SKETCH:].copy().view(np.uint8), common
    )
    return result


@compiled
def _similarities(ones: Any, others: Any, minima: Any, other_minima: Any, common: Any) -> Any:
    result = np.zeros(len(ones))
    for pair in range(len(ones)):
        one, other = ones[pair], others[pair]
        i = j = union = both = own_union = own_both = 0
        while union < SKETCH and i < SKETCH and j < SKETCH and (one[i] != _NONE or other[j] != _NONE):
            left, right = one[i], other[j]
            both += left == right
            i += left <= right
            j += right <= left
            union += 1
            if len(common):
                least = min(left, right)
                at = np.searchsorted(common, least)
                if at == len(common) or common[at] != least:
                    own_union += 1
                    own_both += left == right
        equal = 0
        for index in range(PERMUTATIONS):
            equal += minima[pair, index] == other_minima[pair, index]
        # unequal minima have equal low bytes once in 256
        paired = max((equal / PERMUTATIONS - 1 / 256) / (1 - 1 / 256), 0)
        runs = both / max(union, 1)
        result[pair] = in_common(paired, runs)
        if LEAST_OWN <= own_union < union and in_passages(paired, runs, result[pair]):
            result[pair] = min(result[pair], similarity_for(own_both / own_union, SKETCHED))
    return result


@compiled
def in_passages(pairs: Any, runs: Any, similarity: Any) -> Any:
    """Whether what two texts do not have in common lies together, as r of `in_common` says: 1 - r is the chance that a
    word is the first of such a passage, so far below the share of those words."""
    if pairs <= 0 or runs <= 0:
        return False
    q, p = 2 * pairs / (1 + pairs), 2 * runs / (1 + runs)
    return 1 - (p / q) ** (1 / (SKETCHED - SHINGLE)) < 0.5 * (1 - similarity)


def exact_pairs(records: U64) -> U64:
    """(2, pairs): each document that repeats an earlier one, and the first of its kind. `records`: (digest, digest,
    document)."""
    _, _, documents = records
    if not documents.size:
        return np.empty((2, 0), np.uint64)
    new = np.concatenate([[True], (records[:2, 1:] != records[:2, :-1]).any(0)])
    firsts = documents[new][np.cumsum(new) - 1]
    return np.stack([documents[~new], firsts[~new]])


def candidate_pairs(records: U64) -> U64:
    """(2, pairs), the smaller document first: neighbours in a bucket, and each with the bucket's first. `records`:
    (key, document).

    Not every pair of a bucket (that would be quadratic in the copies of a much copied text), but enough to connect it.
    """
    keys, documents = records
    if keys.size < 2:
        return np.empty((2, 0), np.uint64)
    new = np.concatenate([[True], keys[1:] != keys[:-1]])
    firsts = documents[new][np.cumsum(new) - 1]
    inside = ~new[1:]
    pairs = np.concatenate([np.stack([documents[:-1], documents[1:]]), np.stack([firsts[1:], documents[1:]])], axis=1)
    pairs = pairs[:, np.concatenate([inside, inside])]
    pairs = pairs[:, pairs[0] != pairs[1]]
    return np.unique(pairs, axis=1) if pairs.size else pairs


class Sketches:
    """The sketches of all documents, where the tasks left them: `files[task]` holds (documents, SKETCH_WIDTH), as a
    `RowWriter` wrote them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    @functools.cached_property
    def common(self) -> NDArray[np.uint32]:
        """Runs that a large share of the documents have, by a sample of them spread over all files."""
        most = SAMPLE // max(1, len(self.files)) + 1
        parts = []
        for file in self.files:
            rows = rows_of(file, np.dtype(np.uint32), SKETCH_WIDTH)
            parts.append(np.array(rows[:: max(1, len(rows) // most), :SKETCH]))
        return common_runs(np.concatenate(parts), int(_NONE)) if parts else _NO_RUNS

    def __getitem__(self, documents: U64) -> NDArray[np.uint32]:
        """Those of some documents: (documents, SKETCH_WIDTH)."""
        sketches = np.empty((documents.size, SKETCH_WIDTH), np.uint32)
        tasks, rows = documents >> np.uint64(ROW_BITS), documents & np.uint64((1 << ROW_BITS) - 1)
        for task in np.unique(tasks):
            here = tasks == task
            file = rows_of(self.files[int(task)], np.dtype(np.uint32), SKETCH_WIDTH)
            sketches[here] = file[rows[here].astype(np.int64)]
        return sketches


def verified_pairs(pairs: U64, sketches: Sketches, least: float, batch: int = BATCH) -> U64:
    """Those of the pairs whose estimated similarity is at least `least`."""
    kept = [
        part[:, similarities(sketches[part[0]], sketches[part[1]], sketches.common) >= least]
        for start in range(0, pairs.shape[1], batch) if (part := pairs[:, start : start + batch]).size
    ]  # fmt: skip
    return np.concatenate(kept, axis=1) if kept else np.empty((2, 0), np.uint64)


def line_hashes(words: Words) -> U64:
    """(lines) hash of each line's letters; 0 for a line of fewer than `LINE_LETTERS`."""
    hashes: U64 = _line_hashes(words.prefix, words.lines, words.amounts)
    return hashes


@compiled
def _line_hashes(prefix: Any, ends: Any, amounts: Any) -> Any:
    hashes, start = np.zeros(len(ends), np.uint64), 0
    for line in range(len(ends)):
        if amounts[ends[line]] - amounts[start] >= LINE_LETTERS:
            hashes[line] = run_hash(prefix, start, ends[line])
        start = ends[line]
    return hashes


def repeated_lines(records: U64, dropped: U64, least: int) -> U64:
    """(2, hashes): lines that stand in at least `least` documents, and in how many. `records`: (line, document), each
    pair once.

    `dropped` (sorted) documents do not count: copies of one document repeat its lines without making them boilerplate.
    """
    lines, documents = records
    if dropped.size:
        at = np.minimum(np.searchsorted(dropped, documents), dropped.size - 1)
        lines = lines[dropped[at] != documents]
    hashes, counts = np.unique(lines, return_counts=True)
    return np.stack([hashes[counts >= least], counts[counts >= least].astype(np.uint64)])


class Clusters(NamedTuple):
    """Near duplicates, settled."""

    dropped: U64  # documents, in order
    kept: U64  # for each the document that is kept in its place
    similarity: NDArray[np.float64]  # for each its estimated similarity to that
    sizes: NDArray[np.int64]  # documents of each cluster of similar texts


def resolve(pairs: U64, sketches: Sketches, least: float) -> Clusters:
    """Clusters of the verified `pairs`, and who stays: going through a cluster in order, a document stays unless it is
    at least `least` similar to one that stays. So nothing is dropped merely because a chain of similar texts leads to
    it.
    """
    members, flat = np.unique(pairs, return_inverse=True)
    if not members.size:
        return Clusters(members, members, np.empty(0), np.empty(0, np.int64))
    one, other = flat.reshape(pairs.shape)
    labels = _connected(one, other, np.arange(members.size))
    order = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.concatenate([[True], np.diff(labels[order]) > 0, [True]]))
    dropped, kept, similar = [], [], []
    for start, stop in itertools.pairwise(bounds):
        cluster = members[order[start:stop]]
        leaders, best = _lead(cluster, sketches, least)
        below = leaders >= 0
        dropped.append(cluster[below])
        kept.append(cluster[leaders[below]])
        similar.append(best[below])
    lost = np.concatenate(dropped)
    sort = np.argsort(lost)
    return Clusters(lost[sort], np.concatenate(kept)[sort], np.concatenate(similar)[sort], np.diff(bounds))


@compiled
def _connected(ones: Any, others: Any, parents: Any) -> Any:
    """For each member the smallest one that pairs connect it with (union-find); `parents` starts as 0, 1, 2, …"""
    for pair in range(len(ones)):
        one, other = ones[pair], others[pair]
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        while parents[other] != other:
            parents[other] = parents[parents[other]]
            other = parents[other]
        if one < other:
            parents[other] = one
        else:
            parents[one] = other
    for member in range(len(parents)):
        parents[member] = parents[parents[member]]  # a parent is smaller, so its root is known by now
    return parents


def _lead(cluster: U64, sketches: Sketches, least: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each document of one cluster the row of the earlier one that stands for it (-1: it stays) and their
    similarity."""
    leaders, best = np.full(cluster.size, -1), np.zeros(cluster.size)
    leading = np.empty((min(LEADERS, cluster.size), SKETCH_WIDTH), np.uint32)
    staying: list[int] = []
    for start in range(0, cluster.size, BATCH):
        for row, sketch in enumerate(sketches[cluster[start : start + BATCH]], start):
            ahead = leading[: len(staying)]
            similar = similarities(ahead, np.broadcast_to(sketch, ahead.shape), sketches.common)
            if staying and similar.max() >= least:
                nearest = int(similar.argmax())
                leaders[row], best[row] = staying[nearest], similar[nearest]
            elif len(staying) < LEADERS:
                leading[len(staying)] = sketch
                staying.append(row)
    return leaders, best
