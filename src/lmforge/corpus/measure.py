"""What a corpus is, in figures: sizes, lengths, words, entropy. Counted in passing, in bounded memory, in any number of parts.

    documents ─▶ Statistics.add, in each worker ─▶ state ─▶ merge ─▶ result ─▶ corpus/statistics.json

All that is kept is a sum, a maximum or a choice by hash, so any split of the documents over workers gives the same result.
"""

from __future__ import annotations

import base64
import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from lmforge.corpus.entropy import chao_shen, grassberger, miller_madow, plug_in
from lmforge.corpus.sources import Document
from lmforge.corpus.vocabulary import Integers, Reals, Vocabulary, growth

SAMPLE_BYTES = 4_000_000  # text compressed for the entropy estimate (level 19 takes 1 to 2 s)
TOP_WORDS = 100
SIZES = ("documents", "bytes", "characters", "words", "lines")
_COMPLEMENT = bytes(range(255, -1, -1))


class Statistics:
    """Running statistics of the documents given to `add`; `result` returns them as one JSON-ready dictionary."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, str], list[int]] = {}  # (genre, source) → as named in SIZES
        self.lengths: Counter[int] = Counter()
        self.vocabulary = Vocabulary()
        self.byte_counts = np.zeros(256, dtype=np.int64)
        self._sample = _Sample(SAMPLE_BYTES)

    @property
    def documents(self) -> int:
        """How many documents were added."""
        return self.lengths.total()

    def add(self, document: Document, digest: bytes) -> None:
        """Count one kept document; `digest` (uniform bytes) decides whether it is in the sample."""
        text = document["text"]
        data = text.encode()
        words = text.split()
        sizes = self.sizes.setdefault((document["genre"], document["source"]), [0] * len(SIZES))
        lines = text.count("\n") + (not text.endswith("\n"))
        for index, amount in enumerate((1, len(data), len(text), len(words), lines)):
            sizes[index] += amount
        self.lengths[max(len(data), 1).bit_length() - 1] += 1
        self.byte_counts += np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
        self.vocabulary.add(words)
        self._sample.offer(digest, data)

    def merge(self, other: Statistics) -> None:
        """Take in what another counted, as if all its documents had been added here; `other` stays as it is."""
        for key, amounts in other.sizes.items():
            self.sizes[key] = [mine + theirs for mine, theirs in zip(self.sizes.get(key, [0] * len(SIZES)), amounts, strict=True)]
        self.lengths.update(other.lengths)
        self.byte_counts += other.byte_counts
        self.vocabulary.merge(other.vocabulary)
        self._sample.merge(other._sample)

    def state(self) -> dict[str, Any]:
        """Everything counted as JSON-ready values: the same for the same documents, in whatever order they came."""
        return {
            "sizes": [[*key, *amounts] for key, amounts in sorted(self.sizes.items())],
            "lengths": sorted(self.lengths.items()),
            "byte_counts": self.byte_counts.tolist(),
            "vocabulary": self.vocabulary.state(),
            "sample": self._sample.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Statistics:
        """What `state` gave, whole again."""
        made = cls()
        made.sizes = {(genre, source): amounts for genre, source, *amounts in state["sizes"]}
        made.lengths = Counter(dict(state["lengths"]))
        made.byte_counts = np.array(state["byte_counts"], dtype=np.int64)
        made.vocabulary = Vocabulary.from_state(state["vocabulary"])
        for digest, data in state["sample"]:
            made._sample.offer(bytes.fromhex(digest), base64.b64decode(data))
        return made

    def result(self) -> dict[str, Any]:
        """Everything counted. Sizes in bytes of UTF-8; `lengths` maps k to the documents of 2^k to 2^(k+1) - 1 bytes."""
        total = self._summed(lambda genre, source: "")[""] if self.sizes else dict.fromkeys(SIZES, 0)
        candidates = self._sample.words() if self.vocabulary.level else ()
        counts, weights = self.vocabulary.spectrum(candidates)
        return {
            **total,
            "genres": self._summed(lambda genre, source: genre),
            "sources": self._summed(lambda genre, source: source),
            "lengths": {str(power): self.lengths[power] for power in sorted(self.lengths)},
            "ascii_share": float(self.byte_counts[:128].sum() / total["bytes"]) if total["bytes"] else 0.0,
            "distinct_words": round(float(weights.sum())),
            "words_exact": not self.vocabulary.level,
            "words_seen_once": round(float(weights[counts == 1].sum())),
            "top_words": [list(pair) for pair in self.vocabulary.top(TOP_WORDS, candidates)],
            "vocabulary_growth": growth(counts, weights),
            "entropy": self._entropy(total, counts, weights),
        }

    def _summed(self, name_of: Callable[[str, str], str]) -> dict[str, dict[str, int]]:
        """The sizes of all documents whose genre and source have the same name, by name."""
        found: dict[str, list[int]] = {}
        for key, amounts in sorted(self.sizes.items(), key=lambda item: name_of(*item[0])):
            name = name_of(*key)
            found[name] = [mine + more for mine, more in zip(found.get(name, [0] * len(SIZES)), amounts, strict=True)]
        return {name: dict(zip(SIZES, amounts, strict=True)) for name, amounts in found.items()}

    def _entropy(self, total: dict[str, int], counts: Integers, weights: Reals) -> dict[str, Any]:
        packed, sample_bytes, sample_documents = self._sample.compressed()
        per_byte = total["words"] / max(1, total["bytes"])
        word = grassberger(counts, weights)
        byte = miller_madow(self.byte_counts)
        packed_bits = 8 * packed / sample_bytes if sample_bytes else 0.0
        return {
            "unigram_bits_per_word": {
                "value": word,
                "definition": "entropy of words (runs of non-space characters), each drawn on its own, white space free; "
                              "Grassberger's correction (2003)",
                "bits_per_word": word, "bits_per_byte": word * per_byte,
                "sample_words": total["words"], "distinct": round(float(weights.sum())),
                "plug_in": plug_in(counts, weights), "miller_madow": miller_madow(counts, weights), "chao_shen": chao_shen(counts, weights),
            },
            "unigram_bits_per_byte": {
                "value": byte,
                "definition": "entropy of the UTF-8 bytes, each drawn on its own; Miller-Madow corrected",
                "bits_per_word": byte / per_byte if per_byte else 0.0, "bits_per_byte": byte,
                "sample_bytes": total["bytes"], "distinct": int((self.byte_counts > 0).sum()),
            },
            "compression_bits_per_byte": {
                "value": packed_bits,
                "definition": "size under Zstandard level 19 of the sample's documents, one after another: an upper bound",
                "bits_per_word": packed_bits / per_byte if per_byte else 0.0, "bits_per_byte": packed_bits,
                "sample_bytes": sample_bytes, "sample_documents": sample_documents,
            },
        }  # fmt: skip


class _Sample:
    """The documents of the smallest digests, up to `limit` bytes together: a random sample that no order of input changes.

    A document over an eighth of the limit is cut to that, so that a few long ones cannot be the whole sample.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.kept: list[tuple[bytes, bytes]] = []  # a heap; digests inverted, so that the largest digest is at its top

    def offer(self, digest: bytes, data: bytes) -> None:
        data = data[: self.limit // 8]
        heapq.heappush(self.kept, (_inverted(digest), data))
        self.size += len(data)
        while self.size > self.limit:
            self.size -= len(heapq.heappop(self.kept)[1])

    def merge(self, other: _Sample) -> None:
        for inverted, data in other.kept:
            self.offer(_inverted(inverted), data)

    def state(self) -> list[list[str]]:
        """[digest in hexadecimal, text in base64] of each, in order of the digests."""
        return [[_inverted(digest).hex(), base64.b64encode(data).decode()] for digest, data in sorted(self.kept, reverse=True)]

    def words(self) -> set[str]:
        """The distinct words of the sample."""
        return {word for _, data in self.kept for word in data.decode(errors="ignore").split()}

    def compressed(self) -> tuple[int, int, int]:
        """(compressed bytes, bytes, documents)."""
        joined = b"".join(data for _, data in sorted(self.kept, reverse=True))
        return len(zstandard.ZstdCompressor(level=19).compress(joined)), len(joined), len(self.kept)


def _inverted(digest: bytes) -> bytes:
    return digest.translate(_COMPLEMENT)
