"""Sources → clean, distinct, split, shuffled documents.

    sources ─▶ clean ─▶ why_dropped ─▶ weight ─▶ exact duplicates ─▶ shuffle ─▶ documents/{train,valid,test}-NNNNN.jsonl.zst
                             │                                               └─ synthesize ─▶ documents/train-synthetic-…
                             └────────────┴─────────────┴─────────────────────▶ dropped/dropped-NNNNN.jsonl.zst

Everything random (split, sampling by weight, order) is a function of a document's text and the seed, so the same texts give the
same bytes, in whatever order the file system lists them.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.corpus.analyse import analyse
from lmforge.corpus.clean import prepare
from lmforge.corpus.decode import lines_of
from lmforge.corpus.measure import Statistics
from lmforge.corpus.overlap import ExactDuplicates, text_digest
from lmforge.corpus.samples import SHOWN_DROPPED, Samples
from lmforge.corpus.shuffle import Entry, ShardWriter, Shuffle
from lmforge.corpus.sources import Document, expected_bytes, iter_documents
from lmforge.corpus.synthesize import synthesize
from lmforge.corpus.translate import Translate
from lmforge.errors import InputError
from lmforge.progress import Bar
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory

SPLITS = ("train", "valid", "test")
VALID_SHARE = 0.2  # of what is held out; the rest is the test set
LEAST_DOCUMENTS = 3


def build_corpus(recipe: Recipe, out: Path, translators: Mapping[int, Translate] | None = None) -> dict[str, Any]:
    """Make the corpus directory `out` from the recipe's sources and return its figures (also in its statistics.json).

    Figures: documents_in, documents_out (distinct documents kept; in = out + dropped), dropped {reason: count}, bytes_out, words,
    entropy {name: {value, definition, sample sizes}}, splits {name: {documents, bytes}} (train counts the copies that a source
    weight above 1 makes, and synthetic documents), notices {what: count} (files passed over, fallbacks taken), synthetic (see `synthesize`).

    `translators` gives each back-translation step of the recipe, by its place, what translates for it.

    Raises:
        InputError: a source cannot be read (names file and line), or there are too few documents for three splits.
        LmforgeError: the disk is full. In every case `out` stays as it was.
    """
    with atomic_directory(out) as folder:
        figures = _Build(recipe, folder, translators or {}).run()
        figures["analysis"] = analyse(folder, recipe)
        (folder / "statistics.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", "utf-8", "replace")
    stable = ("documents_in", "documents_out", "dropped", "bytes_out", "words", "entropy", "splits", "notices", "synthetic")
    return {name: figures[name] for name in stable}


def read_documents(corpus_dir: Path, split: str) -> Iterator[dict[str, Any]]:
    """Stream the documents of one split ("train", "valid" or "test") in their order; verifies no checksums.

    Raises:
        InputError: there is no such split, or a shard is damaged.
    """
    return map(json.loads, read_lines(corpus_dir, split))


def read_lines(corpus_dir: Path, split: str) -> Iterator[bytes]:
    """`read_documents` before they are parsed, for whoever parses them in another process.

    Raises:
        InputError: as `read_documents`.
    """
    shards = sorted((corpus_dir / "documents").glob(f"{split}-*.jsonl.zst"))
    if not shards:
        raise InputError(f"{corpus_dir}: holds no '{split}' documents; run the corpus stage first")
    for shard in shards:
        for _, line in lines_of(shard):
            yield line


class Places:
    """Where each document lies in [0, 1), and the bounds: under `valid_below` valid, under `test_below` test, else train.

    The bounds are holdout/5 and holdout, so a document's split depends on its own text alone and stays when others are added.
    Only where a held-out part would be empty (a handful of documents) are they raised to take in the document that lies nearest.
    """

    def __init__(self, holdout: float, dropped: Counter[str]) -> None:
        self.holdout, self.dropped = holdout, dropped
        self.places = array("d")

    def bounds(self) -> tuple[float, float]:
        """(valid_below, test_below).

        Raises:
            InputError: a split would stay empty.
        """
        places = np.sort(np.frombuffer(self.places, dtype=np.float64)) if self.places else np.empty(0)
        if places.size < LEAST_DOCUMENTS:
            raise InputError(self._too_few("at least one each is needed for train, valid and test"))
        valid = max(VALID_SHARE * self.holdout, math.nextafter(places[0], 1))
        in_valid = int(np.searchsorted(places, valid))
        if in_valid == places.size:
            raise InputError(self._too_few("all fall in the held-out part"))
        test = max(self.holdout, math.nextafter(places[in_valid], 1))
        if int(np.searchsorted(places, test)) == places.size:
            raise InputError(self._too_few("all fall in the held-out part"))
        return valid, test

    def _too_few(self, cause: str) -> str:
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common(3))
        return (
            f"corpus.sources: {len(self.places)} documents are left{f' (dropped: {dropped})' if dropped else ''}, "
            f"too few to hold some out: {cause}; "
            f"add texts, split them into more files, or change corpus.holdout (now {self.holdout})"
        )


class _Build:
    """One run: the first pass filters and spills, the second writes in order."""

    def __init__(self, recipe: Recipe, folder: Path, translators: Mapping[int, Translate]) -> None:
        self.recipe, self.folder, self.translators = recipe, folder, translators
        self.documents_in = self.copies = 0
        self.dropped: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self.statistics, self.samples, self.seen = Statistics(), Samples(), ExactDuplicates()
        self.places = Places(recipe.corpus.holdout, self.dropped)
        self.shuffle = Shuffle(folder)
        self.dropped_writer = ShardWriter(folder / "dropped", "dropped")

    def run(self) -> dict[str, Any]:
        sources = [source for source in self.recipe.corpus.sources if source.kind != "procedural"]  # those are made, not read
        sizes = [expected_bytes(source) for source in sources]  # also finds missing paths before any work is done
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with Bar("corpus", total, "B") as bar:
            for source in sources:
                for document in iter_documents(source, self.notices):
                    bar.step(len(document["text"]), f"{self.documents_in:,} documents")
                    self._take(document, source.copies)
        self.dropped_writer.close()
        splits = self._write()
        synthetic = synthesize(self.recipe, self.folder, splits["train"]["bytes"], self.translators)
        for what in ("documents", "bytes"):
            splits["train"][what] += synthetic[what]
        kept = self.statistics.documents
        dropped = dict(sorted(self.dropped.items()))
        (self.folder / "samples.html").write_text(self.samples.page(self.recipe.name, dropped, kept), "utf-8", "replace")
        measured = self.statistics.result()
        return {
            "documents_in": self.documents_in, "documents_out": measured["documents"], "dropped": dropped,
            "bytes_out": measured["bytes"], "words": measured["words"], "entropy": measured["entropy"], "splits": splits,
            "notices": dict(sorted(self.notices.items())), "copies": self.copies, "synthetic": synthetic,
            **{name: value for name, value in measured.items() if name not in ("documents", "bytes", "words", "entropy")},
        }  # fmt: skip

    def _take(self, document: Document, weight: float) -> None:
        self.documents_in += 1
        document, reason = prepare(document, self.recipe.corpus, self.notices)
        digest = text_digest(document["text"])
        # Independent parts of one digest: bytes 0-7 split, 8-15 weight, 16-23 examples shown, 24-31 sample measured.
        copies = int(weight) + (_unit(digest[8:16]) < weight % 1)
        if reason is None and not copies:
            reason = "source_weight"
        if reason is None and not self.seen.add(digest):
            reason = "exact_duplicate"
        if reason is not None:
            self._drop(document, reason, digest)
            return
        self.statistics.add(document, digest[24:])
        self.samples.keep(document, digest)
        made = "synthetic" in document["meta"]  # elsewhere, by whatever means: for training only
        place = math.nextafter(1, 0) if made else _unit(split_digest(document, digest)[:8])
        self.places.places.append(place)
        line = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        size = len(document["text"].encode())
        for copy in range(copies):
            key = hashlib.sha256(b"%d %d %s" % (self.recipe.seed, copy, digest)).digest()[:16]
            self.shuffle.add(Entry(key, place, copy, size, line))

    def _drop(self, document: Document, reason: str, digest: bytes) -> None:
        self.dropped[reason] += 1
        self.samples.drop(document, reason, digest)
        text = document["text"][:SHOWN_DROPPED]
        entry = {"id": document["id"], "source": document["source"], "reason": reason, "text": text}
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self.dropped_writer.write(line, len(line))

    def _write(self) -> dict[str, dict[str, int]]:
        valid_below, test_below = self.places.bounds()
        writers = {split: ShardWriter(self.folder / "documents", split) for split in SPLITS}
        for entry in self.shuffle.sorted():
            split = "valid" if entry.place < valid_below else "test" if entry.place < test_below else "train"
            if entry.copy and split != "train":
                continue
            self.copies += entry.copy > 0
            writers[split].write(entry.line, entry.text_bytes)
        for writer in writers.values():
            writer.close()
        return {split: {"documents": writer.documents, "bytes": writer.bytes} for split, writer in writers.items()}


def split_digest(document: Document, digest: bytes) -> bytes:
    """What decides a document's split: its text, or `meta.split_key`, which it shares with those it must not be parted from."""
    key = document["meta"].get("split_key")
    return digest if key is None else hashlib.sha256(str(key).encode()).digest()


def _unit(data: bytes) -> float:
    """8 uniform bytes as a number in [0, 1), exactly representable (53 bits)."""
    return (int.from_bytes(data, "big") >> 11) / (1 << 53)
