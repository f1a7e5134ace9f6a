"""The last two passes over a corpus: what is kept, shuffled, with statistics and samples; and its shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lmforge.corpus.holdout import Held
from lmforge.corpus.measure.counts import Statistics
from lmforge.corpus.overlap import duplicates
from lmforge.corpus.repeated import RepeatedLines
from lmforge.corpus.samples import SHOWN_DROPPED, Samples
from lmforge.corpus.shuffle import Entry, Scatter, ShardCounts, gathered, write_shard
from lmforge.corpus.sources.kinds import Document
from lmforge.corpus.splits import SPLITS
from lmforge.corpus.spool import read_lines, rows_of
from lmforge.corpus.steps import INDEX, PAIRS_SHOWN, CorpusPlan, Dropped, Step, document_line


class Apply(Step):
    """Documents that stay, without lines that many repeat, on their way into shards; statistics and samples of them."""

    name = "apply"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Apply the decisions to the documents of one task of `read`."""
        resolve = self.work / "settle" / "00000"
        settled = json.loads((self.work / "hold" / "00000" / "hold.json").read_text())
        shards = ShardCounts.holding(settled["bytes"])
        held = Held.load(self.work / "hold" / "00000").of_task(rank)
        source = self.work / "read" / f"{rank:05d}"
        fates = _Fates(resolve, rank)
        lines = RepeatedLines.of(self.work)
        statistics, samples = Statistics(), Samples()
        dropped = Dropped(folder, samples)
        scatter = Scatter(folder, shards.total)
        splits = {split: Counter(documents=0, bytes=0, copies=0) for split in SPLITS}
        for row, (line, entry) in enumerate(
            zip(read_lines(source / "documents.bin"), rows_of(source / "index.bin", INDEX), strict=True)
        ):
            digest = bytes(entry["digest"])
            reason = fates.reason(row)
            document: Document = orjson.loads(line)
            if reason is None and lines.strip_from(document):
                line = document_line(document)[:-1]
                if len(document["text"]) < plan.recipe.corpus.min_chars:
                    reason = "repeated_lines"
            if reason is not None:
                dropped.add(document, reason, digest)
                fates.show(row, document, digest)
                continue
            statistics.add(document, digest[24:])
            samples.keep(document, digest)
            size = len(document["text"].encode("utf-8", "replace"))
            split, leaked = held.get(row, ("train", []))
            if leaked:
                document["meta"]["leaked"] = leaked
                line = document_line(document)[:-1]
            for copy in range(int(entry["copies"]) if split == "train" else 1):
                key = hashlib.sha256(b"%d %d %s" % (plan.recipe.seed, copy, digest)).digest()[:16]
                scatter.add(shards.part(split, key), Entry(key, size, line + b"\n"))
                splits[split].update(documents=1, bytes=size, copies=copy > 0)
        scatter.close()
        dropped.writer.close()
        counts = {
            "dropped": dropped.counts,
            "samples": samples.state(),
            "pairs": fates.pairs,
            "lines": lines.figures(),
            "splits": splits,
        }
        (folder / "counts.json").write_text(json.dumps(counts), "utf-8", "replace")
        (folder / "statistics.json").write_bytes(orjson.dumps(statistics.state()))
        return {"kept": statistics.documents, **dropped.counts}


class _Fates:
    """Which documents of one task are dropped as duplicates, and some pairs of near duplicates to show."""

    def __init__(self, resolve: Path, rank: int) -> None:
        self.first = rank << duplicates.ROW_BITS
        limits = np.array([self.first, self.first + (1 << duplicates.ROW_BITS)], np.uint64)
        self.exact: set[int] = set()
        self.near: dict[int, tuple[int, float]] = {}
        self.pairs: list[dict[str, Any]] = []
        with np.load(resolve / "exact.npz") as exact, np.load(resolve / "near.npz") as near:
            start, stop = np.searchsorted(exact["dropped"], limits)
            self.exact = {int(number) - self.first for number in exact["dropped"][start:stop]}
            start, stop = np.searchsorted(near["dropped"], limits)
            columns = (near[name][start:stop].tolist() for name in ("dropped", "kept", "similarity"))
            self.near = {
                number - self.first: (kept, similarity) for number, kept, similarity in zip(*columns, strict=True)
            }

    def reason(self, row: int) -> str | None:
        return "exact_duplicate" if row in self.exact else "near_duplicate" if row in self.near else None

    def show(self, row: int, document: Document, digest: bytes) -> None:
        """Keep the pair if it is among the few of smallest digests."""
        if row in self.near and row not in self.exact:
            kept, similarity = self.near[row]
            shown = {
                "rank": digest[16:24].hex(),
                "kept": kept,
                "similarity": round(similarity, 3),
                "dropped": excerpt(document),
            }
            self.pairs = sorted([*self.pairs, shown], key=lambda pair: str(pair["rank"]))[:PAIRS_SHOWN]


def excerpt(document: Document) -> dict[str, str]:
    """What is shown of a document."""
    return {"id": document["id"], "source": document["source"], "text": document["text"][:SHOWN_DROPPED]}


class Write(Step):
    """One shard of the corpus."""

    name = "write"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Sort and write shard `rank`."""
        settled = json.loads((self.work / "hold" / "00000" / "hold.json").read_text())
        path = folder / ShardCounts.holding(settled["bytes"]).file_name(rank)
        return {"documents": write_shard(path, gathered(self.folders("apply"), rank))}
