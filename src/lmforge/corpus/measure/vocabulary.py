"""Word counts in bounded memory that give the same figures however the documents are spread over workers.

Up to `MOST_DISTINCT` distinct words everything is exact. Beyond it only words whose hash, uniform in [0, 1), lies under
2^-level are kept, counted exactly; each stands for 2^level words (Gibbons 2001, "Distinct sampling for highly-accurate
answers to distinct values queries"). The counts of all others go into a count-min sketch (Cormode & Muthukrishnan
2005), which is asked for the few frequent words alone. Level and sketch are functions of the words counted, not of
their order: `merge` is commutative and associative.
"""

from __future__ import annotations

import base64
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

# words held at once, about 30 MB; sampling starts beyond it, which tells their number within 0.4% (one sd)
MOST_DISTINCT = 250_000
ROWS, COLUMNS = 4, 1 << 18  # of the sketch: 8 MB; a count comes out too high by about N / 2^18
FREQUENT = 1e-4  # of all words: what occurs more often counts for itself alone and is never sampled

Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]


class WordCounts:
    """Counts of words. `total` is how many were given; figures come from `spectrum` and `top`."""

    def __init__(self) -> None:
        self.total = 0
        self.counts: Counter[str] = Counter()  # kept words, whole; of others what is not in the sketch yet
        self.level = 0
        self._sketch: Integers | None = None

    def add(self, words: Collection[str]) -> None:
        """Count some words."""
        self.total += len(words)
        self.counts.update(words)
        if len(self.counts) > MOST_DISTINCT:
            self._fold()

    def merge(self, other: WordCounts) -> None:
        """Take in what another counted; `other` stays as it is."""
        self.total += other.total
        self.level = max(self.level, other.level)
        if other._sketch is not None:
            self._sketch = other._sketch + (0 if self._sketch is None else self._sketch)
        self.counts.update(other.counts)
        if self.level or len(self.counts) > MOST_DISTINCT:
            self._fold()

    def _fold(self) -> None:
        """Move the counts of words that are not kept into the sketch, at the lowest level that leaves half of the
        room."""
        words = list(self.counts)
        hashes = _hashes(words)
        self.level = max(self.level, 1)
        while np.count_nonzero(hashes < _bound(self.level)) > MOST_DISTINCT // 2:
            self.level += 1
        if self._sketch is None:
            self._sketch = np.zeros((ROWS, COLUMNS), np.int64)
        out = np.flatnonzero(hashes >= _bound(self.level))
        amounts = np.array([self.counts.pop(words[index]) for index in out], np.int64)
        for row, places in zip(self._sketch, _places(hashes[out]), strict=True):
            np.add.at(row, places, amounts)

    def spectrum(self, candidates: Iterable[str] = ()) -> tuple[Integers, Reals]:
        """Counts (K,), ascending, and how many distinct words each stands for (K,).

        `candidates` are words among which those frequent ones that are not kept are looked for: any that occur in a
        sample of the text.
        """
        counts = {**self._frequent(candidates), **self._settled().counts}
        matched = np.sort(np.fromiter(counts.values(), np.int64, len(counts)))
        if not self.level:
            return matched, np.ones(len(matched))
        return matched, np.where(matched >= FREQUENT * self.total, 1.0, 2.0**self.level)

    def top(self, most: int, candidates: Iterable[str] = ()) -> list[tuple[str, int]]:
        """The most frequent words with their counts, the largest first, then by spelling."""
        counts = {**self._frequent(candidates), **self._settled().counts}
        # of those shown; equals are told apart below
        least = np.sort(np.fromiter(counts.values(), np.int64, len(counts)))[-most:][:1].sum()
        return sorted((pair for pair in counts.items() if pair[1] >= least), key=lambda pair: (-pair[1], pair[0]))[
            :most
        ]

    def _settled(self) -> WordCounts:
        """Self, with everything that is not kept in the sketch."""
        if self.level:
            self._fold()
        return self

    def _frequent(self, candidates: Iterable[str]) -> dict[str, int]:
        """Those of `candidates` that are not kept and make up more than `FREQUENT` of all words, with the sketch's
        counts."""
        if self._settled()._sketch is None:
            return {}
        assert self._sketch is not None
        words = sorted(set(candidates) - set(self.counts))
        hashes = _hashes(words)
        words = [word for word, value in zip(words, hashes, strict=True) if value >= _bound(self.level)]
        places = _places(hashes[hashes >= _bound(self.level)])
        # A cell holds its word and a share of all others in the row: what the others are expected to add is taken off
        # (Deng 2007).
        held = np.stack([row[place] for row, place in zip(self._sketch, places, strict=True)])
        noise = (self._sketch.sum(axis=1, keepdims=True) - held) / (COLUMNS - 1)
        counts = np.round((held - noise).min(axis=0)).astype(np.int64)
        return {
            word: int(count)
            for word, count in zip(words, counts, strict=True)
            if count >= max(1, FREQUENT * self.total)
        }

    def state(self) -> dict[str, Any]:
        """Everything counted as JSON-ready values: the same for the same words, in whatever order they came."""
        words = sorted(self._settled().counts)
        sketch = None if self._sketch is None else base64.b64encode(zlib.compress(self._sketch.tobytes(), 1)).decode()
        counts = [self.counts[word] for word in words]
        return {"total": self.total, "level": self.level, "words": words, "counts": counts, "sketch": sketch}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WordCounts:
        """What `state` gave, whole again."""
        made = cls()
        made.total, made.level = state["total"], state["level"]
        made.counts = Counter(dict(zip(state["words"], state["counts"], strict=True)))
        if state["sketch"] is not None:
            data = zlib.decompress(base64.b64decode(state["sketch"]))
            made._sketch = np.frombuffer(data, np.int64).reshape(ROWS, COLUMNS).copy()
        return made


def growth(counts: Integers, weights: Reals, points: int = 16) -> list[dict[str, int]]:
    """How many distinct words n = N, N/2, N/4, … words drawn at random from all N would hold, the smallest n first.

    E[V(n)] = Σ_w 1 - (1 - n/N)^n_w (Baayen 2001, "Word Frequency Distributions", eq. 2.41). Words of one document
    repeat each other, so as many words out of a few whole documents hold fewer distinct ones.
    """
    total = float(counts @ weights)
    values, index = np.unique(counts, return_inverse=True)
    stand_for = np.bincount(index, weights) if len(values) else np.zeros(0)
    matched = []
    for halvings in range(points if total else 0):
        words = round(total / 2**halvings)
        if words < 64 and halvings:
            break
        left = (1 - 2.0**-halvings) ** values.astype(np.float64)
        matched.append({"words": words, "distinct": round(float((1 - left) @ stand_for))})
    return matched[::-1]


def _hashes(words: Iterable[str]) -> Hashes:
    """64 uniform bits of each word, the same in every process (Python's own hash is salted)."""
    digests = b"".join(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _bound(level: int) -> np.uint64:
    return np.uint64((1 << 64 - level) - 1)


def _places(hashes: Hashes) -> Integers:
    """The cell of each word in each row of the sketch: (ROWS, N), from bits that do not decide the level."""
    steps = hashes * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    mixed = hashes[None] + np.arange(ROWS, dtype=np.uint64)[:, None] * (steps ^ steps >> np.uint64(29))[None]
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ mixed >> np.uint64(31)) % np.uint64(COLUMNS)).astype(np.int64)
