"""What a corpus is, in figures: sizes, lengths, words, entropy. Counted in passing, in bounded memory, in any number of
parts.

    documents ─▶ Statistics.add, in each worker ─▶ state ─▶ merge ─▶ result ─▶ corpus/statistics.json

All that is kept is a sum, a maximum or a choice by hash, so any split of the documents over workers gives the same
result.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from lmforge.corpus import scripts
from lmforge.corpus.measure.entropy import chao_shen, grassberger, miller_madow, plug_in
from lmforge.corpus.measure.lexical import zipf
from lmforge.corpus.measure.sampling import HashSample
from lmforge.corpus.measure.vocabulary import Integers, Reals, WordCounts, growth
from lmforge.corpus.sources.document import Document

SAMPLE_BYTES = 4_000_000  # text compressed for the entropy estimate (level 19 takes 1 to 2 s)
TOP_WORDS = 100
# Level 19 with smaller tables: 14 MB instead of 52, 1.3% larger results.
_PACKING = zstandard.ZstdCompressionParameters.from_level(19, window_log=22, chain_log=21, hash_log=20)
SIZES = ("documents", "bytes", "characters", "words", "lines")


class Statistics:
    """Running statistics of the documents given to `add`; `result` returns them as one JSON-ready dictionary."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, str], list[int]] = {}  # (genre, source) → as named in SIZES
        self.lengths: Counter[int] = Counter()
        self.vocabulary = WordCounts()
        self.byte_counts = np.zeros(256, dtype=np.int64)
        self._sample: HashSample[bytes] = HashSample(SAMPLE_BYTES)

    @property
    def documents(self) -> int:
        """How many documents were added."""
        return self.lengths.total()

    def add(self, document: Document, digest: bytes) -> None:
        """Count one kept document; `digest` (uniform bytes) decides whether it is in the sample."""
        text = document["text"]
        data = text.encode()
        words = scripts.words(text)
        sizes = self.sizes.setdefault((document["genre"], document["source"]), [0] * len(SIZES))
        lines = text.count("\n") + (not text.endswith("\n"))
        for index, amount in enumerate((1, len(data), len(text), len(words), lines)):
            sizes[index] += amount
        self.lengths[max(len(data), 1).bit_length() - 1] += 1
        self.byte_counts += np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
        self.vocabulary.add(words)
        self._offer(digest, data)

    def _offer(self, digest: bytes, data: bytes) -> None:
        # A document over an eighth of the limit is cut to that, so that a few long ones cannot be the whole sample.
        data = data[: self._sample.limit // 8]
        self._sample.offer(digest, len(data), data)

    def merge(self, other: Statistics) -> None:
        """Take in what another counted, as if all its documents had been added here; `other` stays as it is."""
        for key, amounts in other.sizes.items():
            self.sizes[key] = [
                mine + theirs for mine, theirs in zip(self.sizes.get(key, [0] * len(SIZES)), amounts, strict=True)
            ]
        self.lengths.update(other.lengths)
        self.byte_counts += other.byte_counts
        self.vocabulary.merge(other.vocabulary)
        self._sample.end_at(other._sample.bound)
        for digest, data in other._sample.kept():
            self._offer(digest, data)

    def state(self) -> dict[str, Any]:
        """Everything counted as JSON-ready values: the same for the same documents, in whatever order they came."""
        return {
            "sizes": [[*key, *amounts] for key, amounts in sorted(self.sizes.items())],
            "lengths": sorted(self.lengths.items()),
            "byte_counts": self.byte_counts.tolist(),
            "vocabulary": self.vocabulary.state(),
            "sample_end": None if self._sample.bound is None else self._sample.bound.hex(),
            "sample": [[digest.hex(), base64.b64encode(data).decode()] for digest, data in self._sample.kept()],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Statistics:
        """What `state` gave, whole again."""
        made = cls()
        made.sizes = {(genre, source): amounts for genre, source, *amounts in state["sizes"]}
        made.lengths = Counter(dict(state["lengths"]))
        made.byte_counts = np.array(state["byte_counts"], dtype=np.int64)
        made.vocabulary = WordCounts.from_state(state["vocabulary"])
        made._sample.end_at(None if state["sample_end"] is None else bytes.fromhex(state["sample_end"]))
        for digest, data in state["sample"]:
            made._offer(bytes.fromhex(digest), base64.b64decode(data))
        return made

    def result(self) -> dict[str, Any]:
        """Everything counted. Sizes in bytes of UTF-8; `lengths` maps k to the documents of 2^k to 2^(k+1) - 1
        bytes."""
        total = self._summed(lambda genre, source: "")[""] if self.sizes else dict.fromkeys(SIZES, 0)
        sample = b"\n".join(data for _, data in self._sample.kept())
        candidates = set(scripts.words(sample.decode(errors="ignore"))) if self.vocabulary.level else set()
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
            "zipf": zipf(counts[weights == 1] if self.vocabulary.level else counts),
            "entropy": self._entropy(total, counts, weights),
        }

    def _summed(self, name_of: Callable[[str, str], str]) -> dict[str, dict[str, int]]:
        """The sizes of all documents whose genre and source have the same name, by name."""
        totals: dict[str, list[int]] = {}
        for key, amounts in sorted(self.sizes.items(), key=lambda item: name_of(*item[0])):
            name = name_of(*key)
            totals[name] = [mine + more for mine, more in zip(totals.get(name, [0] * len(SIZES)), amounts, strict=True)]
        return {name: dict(zip(SIZES, amounts, strict=True)) for name, amounts in totals.items()}

    def _entropy(self, total: dict[str, int], counts: Integers, weights: Reals) -> dict[str, Any]:
        sample = [data for _, data in self._sample.kept()]
        sample_bytes, packed = (
            sum(map(len, sample)),
            len(zstandard.ZstdCompressor(compression_params=_PACKING).compress(b"".join(sample))),
        )
        per_byte = total["words"] / max(1, total["bytes"])
        word = grassberger(counts, weights)
        byte = miller_madow(self.byte_counts)
        packed_bits = 8 * packed / sample_bytes if sample_bytes else 0.0
        return {
            "unigram_bits_per_word": {
                "value": word,
                "definition": "entropy of words (runs of non-space characters; of scripts without spaces "
                "single signs), each drawn on its own, white space free; "
                "Grassberger's correction (2003)",
                "bits_per_word": word,
                "bits_per_byte": word * per_byte,
                "sample_words": total["words"],
                "distinct": round(float(weights.sum())),
                "plug_in": plug_in(counts, weights),
                "miller_madow": miller_madow(counts, weights),
                "chao_shen": chao_shen(counts, weights),
            },
            "unigram_bits_per_byte": {
                "value": byte,
                "definition": "entropy of the UTF-8 bytes, each drawn on its own; Miller-Madow corrected",
                "bits_per_word": byte / per_byte if per_byte else 0.0,
                "bits_per_byte": byte,
                "sample_bytes": total["bytes"],
                "distinct": int((self.byte_counts > 0).sum()),
            },
            "compression_bits_per_byte": {
                "value": packed_bits,
                "definition": (
                    "size under Zstandard level 19 (tables of 14 MB) of the sample's documents, one after another: an "
                    "upper bound"
                ),
                "bits_per_word": packed_bits / per_byte if per_byte else 0.0,
                "bits_per_byte": packed_bits,
                "sample_bytes": sample_bytes,
                "sample_documents": len(sample),
            },
        }
