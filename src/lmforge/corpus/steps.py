"""The passes over a corpus as datatrove pipeline steps. Each does one task, from files to files; the work folder is all
they share.

    read    parts ─▶ cleaned documents, digests, signatures, lines, dropped         read/TASK/      a task: some parts
    of the sources
    match   equal digests, near duplicates                                          match/PART/     a task: a range of
    hashes
    settle  who is dropped; where the splits lie; how many shards                   settle/00000/   one task
    count   lines that many documents repeat                                        count/PART/     a task: a range of
    hashes
    apply   what is kept, shuffled; statistics, samples                             apply/TASK/     a task for each of
    read
    write   a shard of the corpus                                                   write/SHARD/    a task for each
    shard

What a task does depends on the input and on what the earlier passes left, never on how many workers there are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from lmforge.corpus.clean.filters import Trained, prepare
from lmforge.corpus.measure.counts import Statistics
from lmforge.corpus.overlap import duplicates
from lmforge.corpus.overlap.decontaminate import Index, contamination
from lmforge.corpus.overlap.words import U64, read_words
from lmforge.corpus.samples import SHOWN_DROPPED, Samples
from lmforge.corpus.shuffle import Entry, Scatter, Shards, ShardWriter, gathered, write_shard
from lmforge.corpus.sources.files import File, Part
from lmforge.corpus.sources.kinds import Document, Encodings, read_part
from lmforge.corpus.splits import SPLITS, place_of, split_at, split_bounds, unit
from lmforge.corpus.spool import LineWriter, RowWriter, Runs, read_lines, read_slice, rows_of, task_folder
from lmforge.recipe import Recipe, parse_recipe

PAIRS_SHOWN = 10
PAIRS_WAITING = 1 << 18  # pairs of near duplicates, 4 MB, that wait to be made distinct
_NO_SKETCH = np.zeros(duplicates.SKETCH_WIDTH, np.uint32)  # keeps the place of a document that is compared with none
# one for each document that read leaves
INDEX = np.dtype([("digest", "V32"), ("place", "<f8"), ("copies", "<u4"), ("bytes", "<u8")])


class Plan(NamedTuple):
    """What is to be done: the recipe and, for each task of `read`, parts with the number of their source."""

    recipe: Recipe
    tasks: tuple[tuple[tuple[int, Part], ...], ...]

    def save(self, path: Path) -> None:
        """Write it, for the tasks to load."""
        tasks = [
            [
                [number, part.name, [[f.name, str(f.path), f.size, f.mtime_ns] for f in part.files], *part[2:]]
                for number, part in task
            ]
            for task in self.tasks
        ]
        path.write_text(json.dumps({"recipe": self.recipe.model_dump(mode="json"), "tasks": tasks}), "utf-8")


@functools.lru_cache(maxsize=2)
def load_plan(path: Path, written_ns: int) -> Plan:
    """Read what `Plan.save` wrote; kept in memory for the tasks of this process."""
    data = json.loads(path.read_text("utf-8"))
    tasks = tuple(
        tuple(
            (number, Part(name, tuple(File(n, Path(p), size, mtime) for n, p, size, mtime in files), *rest))
            for number, name, files, *rest in task
        )
        for task in data["tasks"]
    )
    return Plan(parse_recipe(data["recipe"]), tasks)


class Step(PipelineStep):  # type: ignore[misc]
    """A pass: `task` does one of its tasks into a folder that appears when it is whole."""

    type = "lmforge"
    name = ""

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Do task `rank` of `world_size`."""
        path = self.work / "plan.json"
        plan = load_plan(path, path.stat().st_mtime_ns)
        with task_folder(self.work / self.name / f"{rank:05d}") as folder:
            for label, value in self.task(plan, folder, rank, world_size).items():
                self.stat_update(label, value=value)

    @abstractmethod
    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Do one task; returns figures for datatrove's own statistics."""

    def folders(self, name: str) -> list[Path]:
        """The folders of all tasks of an earlier pass, in order."""
        return sorted(path for path in (self.work / name).glob("[0-9]*"))


def document_line(document: Document) -> bytes:
    """The document as a line of JSON, with its line end."""
    try:
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, or a number beyond 64 bits
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


def _is_plain(document: Document) -> bool:
    """Whether the document is a text as it stands, not one in which places are marked by their position. Those are
    examples made on purpose: a sentence pair has the words of its other direction and is no copy of it."""
    return "loss_spans" not in document["meta"]


def _has_plain_lines(document: Document) -> bool:
    """Whether a line may be taken out: not of a program, nor of a text with marked places."""
    return document["genre"] != "code" and _is_plain(document)


class _Dropped:
    """What a task leaves out: counted, shown, listed."""

    def __init__(self, folder: Path, samples: Samples) -> None:
        self.counts: Counter[str] = Counter()
        self.samples = samples
        self.writer = ShardWriter(folder, "dropped")

    def add(self, document: Document, reason: str, digest: bytes) -> None:
        self.counts[reason] += 1
        self.samples.drop(document, reason, digest)
        entry = {
            "id": document["id"],
            "source": document["source"],
            "reason": reason,
            "text": document["text"][:SHOWN_DROPPED],
        }
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self.writer.write(line, len(line))


class Read(Step):
    """Parts of the sources → cleaned documents and everything by which they are compared."""

    name = "read"

    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Read the parts of one task."""
        corpus = plan.recipe.corpus
        index_file = self.work / "benchmarks.npz"
        benchmarks = load_index(index_file, index_file.stat().st_mtime_ns) if index_file.exists() else None
        trained = load_filters(self.work, (self.work / "plan.json").stat().st_mtime_ns)
        notices: Counter[str] = Counter()
        encodings = Encodings()
        found: Counter[str] = Counter()
        dropped = _Dropped(folder, Samples())
        kept = _Kept(folder, rank, corpus.near_duplicates < 1, corpus.repeated_lines > 0)
        documents = 0
        for number, part in plan.tasks[rank]:
            weight = corpus.sources[number].copies
            for raw in read_part(corpus.sources[number], part, notices, encodings):
                documents += 1
                document, reason = prepare(raw, corpus, notices, trained)
                digest = duplicates.text_digest(document["text"])
                # Independent parts of one digest: bytes 0-7 split, 8-15 weight, 16-23 examples shown, 24-31 sample
                # measured.
                copies = int(weight) + (unit(digest[8:16]) < weight % 1)
                if reason is None and not copies:
                    reason = "source_weight"
                words = read_words(document["text"]) if reason is None else None
                if (
                    words is not None
                    and benchmarks is not None
                    and (benchmark := contamination(words, benchmarks)) is not None
                ):
                    reason, words = "contaminated", None
                    found[benchmark] += 1
                if words is None or reason is not None:
                    dropped.add(document, reason or "", digest)
                else:
                    kept.add(document, digest, copies, words)
        dropped.writer.close()
        kept.close()
        counts = {"documents": documents, "dropped": dropped.counts, "notices": notices, "contaminated": found}
        more = {"samples": dropped.samples.state(), "encodings": encodings.state()}
        (folder / "counts.json").write_text(json.dumps({**counts, **more}), "utf-8", "replace")
        return {"documents": documents, "kept": kept.index.rows, **dropped.counts}


@functools.lru_cache(maxsize=1)
def load_filters(work: Path, written_ns: int) -> Trained:
    """The trained filters, kept in memory for the tasks of this process."""
    return Trained.load(work)


@functools.lru_cache(maxsize=1)
def load_index(path: Path, written_ns: int) -> Index:
    """The benchmarks' index, kept in memory for the tasks of this process."""
    return Index.load(path)


class _Kept:
    """The documents that one task of `read` leaves, and their records."""

    def __init__(self, folder: Path, rank: int, near: bool, lines: bool) -> None:
        self.near, self.lines = near, lines
        self.number = rank << duplicates.ROW_BITS
        self.index, self.sketches = RowWriter(folder / "index.bin"), RowWriter(folder / "sketches.bin")
        self.documents = LineWriter(folder / "documents.bin")
        self.exact, self.bands, self.line_runs = (
            Runs(folder, "exact", 3),
            Runs(folder, "bands", 2),
            Runs(folder, "lines", 2),
        )

    def add(self, document: Document, digest: bytes, copies: int, words: Any) -> None:
        number = np.uint64(self.number + self.index.rows)
        self.documents.write(document_line(document)[:-1])
        size = len(document["text"].encode("utf-8", "replace"))
        self.index.write(np.array((digest, place_of(document, digest), copies, size), INDEX))
        self.exact.add(
            *(np.frombuffer(digest[at : at + 8], ">u8").astype(np.uint64) for at in (0, 8)), np.array([number])
        )
        if self.near and _is_plain(document):
            keys, sketch = duplicates.signature(words)
            self.sketches.write(sketch)
            self.bands.add(keys, np.full(keys.size, number))
        elif self.near:
            self.sketches.write(_NO_SKETCH)
        if self.lines and _has_plain_lines(document):
            lines = np.unique(duplicates.line_hashes(words.prefix, words.lines))
            lines = lines[lines > 0]
            self.line_runs.add(lines, np.full(lines.size, number))

    def close(self) -> None:
        for writer in (self.documents, self.index, self.sketches, self.exact, self.bands, self.line_runs):
            writer.close()


class Match(Step):
    """Documents of equal digests, and pairs of near duplicates, in one range of hashes."""

    name = "match"

    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Match one range of hashes."""
        read = self.folders("read")
        exact = duplicates.exact_pairs(read_slice(read, "exact", 3, rank, tasks))
        np.save(folder / "exact.npy", exact)
        pairs = duplicates.candidate_pairs(read_slice(read, "bands", 2, rank, tasks))
        least = plan.recipe.corpus.near_duplicates
        near = duplicates.verified_pairs(pairs, duplicates.Sketches([each / "sketches.bin" for each in read]), least)
        np.save(folder / "near.npy", near)
        return {"exact": exact.shape[1], "candidates": pairs.shape[1], "near": near.shape[1]}


class Settle(Step):
    """Everything that only all documents together decide."""

    name = "settle"

    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Decide who is dropped, where the splits lie and how many shards there are."""
        match, read = self.folders("match"), self.folders("read")
        exact = np.concatenate([np.load(each / "exact.npy") for each in match], axis=1)
        exact = exact[:, np.argsort(exact[0])]
        pairs = _of_firsts(_distinct(np.load(each / "near.npy") for each in match), exact)
        least = plan.recipe.corpus.near_duplicates
        near = duplicates.resolve(pairs, duplicates.Sketches([each / "sketches.bin" for each in read]), least)
        np.savez(folder / "exact.npz", dropped=exact[0], kept=exact[1])
        np.savez(folder / "near.npz", dropped=near.dropped, kept=near.kept, similarity=near.similarity)
        dropped = np.union1d(exact[0], near.dropped)
        np.save(folder / "dropped.npy", dropped)
        bounds = split_bounds(
            plan.recipe.corpus.holdout, lambda: (each["place"] for each in _kept(read, dropped)),
            lambda: _dropped_before(read, exact.shape[1], near.dropped.size),
        )  # fmt: skip
        settled = {
            "bounds": bounds,
            "bytes": _split_bytes(_kept(read, dropped), bounds),
            "exact": _sizes(exact),
            "near": _histogram(near.sizes),
        }
        (folder / "settled.json").write_text(json.dumps(settled))
        return {"exact": exact.shape[1], "near": int(near.dropped.size)}


def _distinct(parts: Iterable[U64]) -> U64:
    """(2, pairs) of all parts, each pair once. A pair of near duplicates shares many bands, so it stands in many parts:
    they are thinned out whenever as many have come in as are held."""
    held, waiting, size = np.empty((2, 0), np.uint64), [np.empty((2, 0), np.uint64)], 0
    for part in parts:
        waiting.append(part)
        size += part.shape[1]
        if size > max(PAIRS_WAITING, held.shape[1]):
            held, waiting, size = np.unique(np.concatenate([held, *waiting], axis=1), axis=1), [], 0
    return np.unique(np.concatenate([held, *waiting], axis=1), axis=1)


def _of_firsts(pairs: U64, exact: U64) -> U64:
    """Pairs of near duplicates, each exact duplicate replaced by the first of its kind."""
    if not exact.size or not pairs.size:
        return np.unique(pairs, axis=1)
    at = np.minimum(np.searchsorted(exact[0], pairs), exact.shape[1] - 1)
    pairs = np.sort(np.where(exact[0][at] == pairs, exact[1][at], pairs), axis=0)
    return np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)


def _sizes(exact: U64) -> dict[str, int]:
    _, copies = np.unique(exact[1], return_counts=True)
    return _histogram(copies + 1)


def _histogram(sizes: NDArray[np.int64]) -> dict[str, int]:
    values, counts = np.unique(sizes, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _dropped_before(read: Sequence[Path], exact: int, near: int) -> Counter[str]:
    dropped: Counter[str] = Counter()
    for folder in read:
        dropped.update(json.loads((folder / "counts.json").read_text("utf-8"))["dropped"])
    return dropped + Counter({"exact_duplicate": exact, "near_duplicate": near})


def _kept(read: Sequence[Path], dropped: U64) -> Iterator[NDArray[np.void]]:
    """The index of the documents that stay, task by task."""
    for task, folder in enumerate(read):
        first, last = np.searchsorted(
            dropped, np.array([task << duplicates.ROW_BITS, (task + 1) << duplicates.ROW_BITS], np.uint64)
        )
        yield np.delete(
            rows_of(folder / "index.bin", INDEX),
            (dropped[first:last] & np.uint64((1 << duplicates.ROW_BITS) - 1)).astype(np.int64),
        )


def _split_bytes(indexes: Iterable[NDArray[np.void]], bounds: tuple[float, float]) -> dict[str, int]:
    """Bytes of text in each split (before repeated lines go); train counts the copies."""
    totals = dict.fromkeys(SPLITS, 0)
    for index in indexes:
        which = np.searchsorted(np.array(bounds), index["place"], side="right")  # 0 valid, 1 test, 2 train
        totals["valid"] += int(index["bytes"][which == 0].sum())
        totals["test"] += int(index["bytes"][which == 1].sum())
        totals["train"] += int((index["bytes"] * index["copies"])[which == 2].sum())
    return totals


class Count(Step):
    """Lines that many documents repeat, in one range of hashes."""

    name = "count"

    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Count one range of hashes."""
        records = read_slice(self.folders("read"), "lines", 2, rank, tasks)
        dropped = np.load(self.work / "settle" / "00000" / "dropped.npy")
        repeated = duplicates.repeated_lines(records, dropped, plan.recipe.corpus.repeated_lines)
        np.save(folder / "repeated.npy", repeated)
        return {"lines": records.shape[1], "repeated": repeated.shape[1]}


class Apply(Step):
    """Documents that stay, without lines that many repeat, on their way into shards; statistics and samples of them."""

    name = "apply"

    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Apply the decisions to the documents of one task of `read`."""
        resolve = self.work / "settle" / "00000"
        settled = json.loads((resolve / "settled.json").read_text())
        shards, bounds = Shards.holding(settled["bytes"]), settled["bounds"]
        source = self.work / "read" / f"{rank:05d}"
        fates = _Fates(resolve, rank)
        lines = _Lines([np.load(each / "repeated.npy") for each in self.folders("count")])
        statistics, samples = Statistics(), Samples()
        dropped = _Dropped(folder, samples)
        scatter = Scatter(folder, shards.total)
        splits = {split: Counter(documents=0, bytes=0, copies=0) for split in SPLITS}
        for row, (line, entry) in enumerate(
            zip(read_lines(source / "documents.bin"), rows_of(source / "index.bin", INDEX), strict=True)
        ):
            digest = bytes(entry["digest"])
            reason = fates.reason(row)
            document: Document = orjson.loads(line)
            if reason is None and _has_plain_lines(document) and lines.strip(document):
                line = document_line(document)[:-1]
                if len(document["text"]) < plan.recipe.corpus.min_chars:
                    reason = "repeated_lines"
            if reason is not None:
                dropped.add(document, reason, digest)
                fates.show(row, document, digest)
                continue
            statistics.add(document, digest[24:])
            samples.keep(document, digest)
            place, size = float(entry["place"]), len(document["text"].encode("utf-8", "replace"))
            split = split_at(place, bounds)
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


class _Lines:
    """Removes lines that many documents repeat, and counts them."""

    def __init__(self, repeated: Sequence[U64]) -> None:
        both = np.concatenate(repeated, axis=1) if repeated else np.empty((2, 0), np.uint64)
        self.hashes, self.counts = both[:, np.argsort(both[0])]
        self.removed = self.removed_bytes = self.touched = 0
        self.examples: dict[int, tuple[int, str]] = {}

    def strip(self, document: Document) -> bool:
        """Take the repeated lines out of the document's text; whether there were any."""
        if not self.hashes.size:
            return False
        words = read_words(document["text"])
        hashes = duplicates.line_hashes(words.prefix, words.lines)
        at = np.minimum(np.searchsorted(self.hashes, hashes), self.hashes.size - 1)
        repeated = self.hashes[at] == hashes
        if not repeated.any():
            return False
        lines = document["text"].split("\n")
        for number in np.flatnonzero(repeated):
            self.removed += 1
            self.removed_bytes += len(lines[number].encode("utf-8", "replace")) + 1
            self.examples.setdefault(
                int(hashes[number]), (int(self.counts[at[number]]), lines[number].strip()[:SHOWN_DROPPED])
            )
        self.touched += 1
        document["text"] = "\n".join(line for line, gone in zip(lines, repeated, strict=True) if not gone)
        return True

    def figures(self) -> dict[str, Any]:
        top = sorted(self.examples.values(), reverse=True)[:PAIRS_SHOWN]
        return {"removed": self.removed, "bytes": self.removed_bytes, "documents": self.touched, "examples": top}


class Write(Step):
    """One shard of the corpus."""

    name = "write"

    def task(self, plan: Plan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Sort and write shard `rank`."""
        settled = json.loads((self.work / "settle" / "00000" / "settled.json").read_text())
        path = folder / Shards.holding(settled["bytes"]).file_name(rank)
        return {"documents": write_shard(path, gathered(self.folders("apply"), rank))}
