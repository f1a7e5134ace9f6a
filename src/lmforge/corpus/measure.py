"""What a corpus is, in figures: sizes, lengths, words, entropy. Counted in passing, in bounded memory."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from lmforge.corpus.sources import Document

MOST_DISTINCT = 2_000_000  # words counted at once (about 250 MB); beyond it the rarest are forgotten
SAMPLE_BYTES = 4_000_000  # text compressed for the entropy estimate (level 19 takes 1 to 2 s)
TOP_WORDS = 100


def miller_madow(counts: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Entropy in bits per symbol of the distribution behind `counts`, with the first-order bias correction.

    H = -Σ p log2 p + (K - 1) / (2 N ln 2), with K symbols seen and N observations (Miller 1955, "Note on the bias of information
    estimates"). The plug-in estimate alone is too low, the more so the more symbols were seen once. 0 for no observations.
    """
    seen = np.asarray(counts, dtype=np.float64)
    seen = seen[seen > 0]
    total = seen.sum()
    if not total:
        return 0.0
    share = seen / total
    return float(-(share * np.log2(share)).sum() + (seen.size - 1) / (2 * total * math.log(2)))


class Statistics:
    """Running statistics of the documents given to `add`; `result` returns them as one JSON-ready dictionary."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.by_genre: dict[str, Counter[str]] = {}
        self.by_source: dict[str, Counter[str]] = {}
        self.lengths: Counter[int] = Counter()
        self.words: Counter[str] = Counter()
        self.byte_counts = np.zeros(256, dtype=np.int64)
        self.growth: list[tuple[int, int]] = []
        self.forgotten_types = self.forgotten_words = 0
        self._sample = _Sample(SAMPLE_BYTES)

    def add(self, document: Document, digest: bytes) -> None:
        """Count one kept document; `digest` (uniform bytes) decides whether it is in the compressed sample."""
        text = document["text"]
        data = text.encode()
        words = text.split()
        sizes = {
            "documents": 1, "bytes": len(data), "characters": len(text), "words": len(words),
            "lines": text.count("\n") + (not text.endswith("\n")),
        }  # fmt: skip
        for counter in (
            self.total,
            self.by_genre.setdefault(document["genre"], Counter()),
            self.by_source.setdefault(document["source"], Counter()),
        ):
            counter.update(sizes)
        self.lengths[max(len(data), 1).bit_length() - 1] += 1
        self.byte_counts += np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
        self._count_words(words)
        self._sample.offer(digest, data)

    def _count_words(self, words: list[str]) -> None:
        self.words.update(words)
        now, last = self.total["words"], self.growth[-1][0] if self.growth else 512
        if now >= 2 * last:
            self.growth.append((now, len(self.words) + self.forgotten_types))
        least = 1
        while len(self.words) > MOST_DISTINCT:
            rare = [word for word, count in self.words.items() if count <= least]
            self.forgotten_words += sum(self.words.pop(word) for word in rare)
            self.forgotten_types += len(rare)
            least *= 2

    def result(self) -> dict[str, Any]:
        """Everything counted. Sizes in bytes of UTF-8; `lengths` maps k to the documents of 2^k to 2^(k+1) - 1 bytes."""
        total = self.total["bytes"]
        return {
            **_plain(self.total),
            "genres": {name: _plain(self.by_genre[name]) for name in sorted(self.by_genre)},
            "sources": {name: _plain(self.by_source[name]) for name in sorted(self.by_source)},
            "lengths": {str(power): self.lengths[power] for power in sorted(self.lengths)},
            "ascii_share": float(self.byte_counts[:128].sum() / total) if total else 0.0,
            "distinct_words": len(self.words) + self.forgotten_types,
            "words_exact": not self.forgotten_types,
            "top_words": [list(pair) for pair in sorted(self.words.most_common(2 * TOP_WORDS), key=_rank)[:TOP_WORDS]],
            "vocabulary_growth": [{"words": words, "distinct": distinct} for words, distinct in self.growth],
            "entropy": self._entropy(),
        }

    def _entropy(self) -> dict[str, Any]:
        # What was forgotten enters as words seen equally often: the largest entropy that it can have had.
        forgotten = [self.forgotten_words / self.forgotten_types] * self.forgotten_types if self.forgotten_types else []
        counts = np.array([*self.words.values(), *forgotten])
        packed, sample_bytes, sample_documents = self._sample.compressed()
        return {
            "unigram_bits_per_word": {
                "value": miller_madow(counts),
                "definition": "entropy of words (runs of non-space characters), each drawn on its own; Miller-Madow corrected",
                "sample_words": self.total["words"], "distinct": int(counts.size),
            },
            "unigram_bits_per_byte": {
                "value": miller_madow(self.byte_counts),
                "definition": "entropy of the UTF-8 bytes, each drawn on its own; Miller-Madow corrected",
                "sample_bytes": self.total["bytes"], "distinct": int((self.byte_counts > 0).sum()),
            },
            "compression_bits_per_byte": {
                "value": 8 * packed / sample_bytes if sample_bytes else 0.0,
                "definition": "size under Zstandard level 19 of the sample's documents, one after another: an upper bound",
                "sample_bytes": sample_bytes, "sample_documents": sample_documents,
            },
        }  # fmt: skip


def _plain(counter: Counter[str]) -> dict[str, int]:
    return {name: counter[name] for name in ("documents", "bytes", "characters", "words", "lines")}


def _rank(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


class _Sample:
    """The documents of the smallest digests, up to `limit` bytes together: a random sample that no order of input changes.

    A document over an eighth of the limit is cut to that, so that a few long ones cannot be the whole sample.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.kept: list[tuple[bytes, bytes]] = []  # a heap; digests inverted, so that the largest digest is at its top

    def offer(self, digest: bytes, data: bytes) -> None:
        data = data[: self.limit // 8]
        heapq.heappush(self.kept, (bytes(255 - byte for byte in digest), data))
        self.size += len(data)
        while self.size > self.limit:
            self.size -= len(heapq.heappop(self.kept)[1])

    def compressed(self) -> tuple[int, int, int]:
        """(compressed bytes, bytes, documents)."""
        joined = b"".join(data for _, data in sorted(self.kept, reverse=True))
        return len(zstandard.ZstdCompressor(level=19).compress(joined)), len(joined), len(self.kept)
