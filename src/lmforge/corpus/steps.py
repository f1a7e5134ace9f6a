"""The passes over a corpus as datatrove pipeline steps. Each does one task, from files to files; the work folder is all
they share.

    read    parts ─▶ cleaned documents, digests, signatures, lines, dropped         read/TASK/      a task: some parts
    of the sources
    match   equal digests, near duplicates                                          match/PART/     a task: a range of
    hashes
    settle  who is dropped                                                          settle/00000/   one task
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
from lmforge.corpus.overlap import duplicates
from lmforge.corpus.overlap.decontaminate import Index, contamination
from lmforge.corpus.overlap.shared import own_text
from lmforge.corpus.overlap.words import U64, read_words
from lmforge.corpus.repeated import has_plain_lines, is_plain
from lmforge.corpus.samples import SHOWN_DROPPED, Samples
from lmforge.corpus.shuffle import ShardWriter
from lmforge.corpus.sources.files import File, SourcePart
from lmforge.corpus.sources.kinds import Document, Encodings, read_part
from lmforge.corpus.splits import place_of, unit
from lmforge.corpus.spool import LineWriter, RowWriter, Runs, read_slice, rows_of, task_folder
from lmforge.recipe import Recipe, parse_recipe

PAIRS_SHOWN = 10
PAIRS_WAITING = 1 << 18  # pairs of near duplicates, 4 MB, that wait to be made distinct
_NO_SKETCH = np.zeros(duplicates.SKETCH_WIDTH, np.uint32)  # keeps the place of a document that is compared with none
# one for each document that read leaves
INDEX = np.dtype([("digest", "V32"), ("place", "<f8"), ("copies", "<u4"), ("bytes", "<u8")])


class CorpusPlan(NamedTuple):
    """What is to be done: the recipe and, for each task of `read`, parts with the number of their source."""

    recipe: Recipe
    tasks: tuple[tuple[tuple[int, SourcePart], ...], ...]

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
def load_plan(path: Path, written_ns: int) -> CorpusPlan:
    """Read what `CorpusPlan.save` wrote; kept in memory for the tasks of this process."""
    data = json.loads(path.read_text("utf-8"))
    tasks = tuple(
        tuple(
            (number, SourcePart(name, tuple(File(n, Path(p), size, mtime) for n, p, size, mtime in files), *rest))
            for number, name, files, *rest in task
        )
        for task in data["tasks"]
    )
    return CorpusPlan(parse_recipe(data["recipe"]), tasks)


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
    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
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


class Dropped:
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

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Read the parts of one task."""
        corpus = plan.recipe.corpus
        index_file = self.work / "benchmarks.npz"
        benchmarks = load_index(index_file, index_file.stat().st_mtime_ns) if index_file.exists() else None
        trained = load_filters(self.work, (self.work / "plan.json").stat().st_mtime_ns)
        notices: Counter[str] = Counter()
        encodings = Encodings()
        leaked: Counter[str] = Counter()
        dropped = Dropped(folder, Samples())
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
                    leaked[benchmark] += 1
                if words is None or reason is not None:
                    dropped.add(document, reason or "", digest)
                else:
                    kept.add(document, digest, copies, words)
        dropped.writer.close()
        kept.close()
        counts = {"documents": documents, "dropped": dropped.counts, "notices": notices, "contaminated": leaked}
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
        if self.near and is_plain(document):
            own = own_text(document)
            keys, sketch = duplicates.signature(words if own is None else read_words(own))
            self.sketches.write(sketch)
            self.bands.add(keys, np.full(keys.size, number))
        elif self.near:
            self.sketches.write(_NO_SKETCH)
        if self.lines and has_plain_lines(document):
            lines = np.unique(duplicates.line_hashes(words))
            lines = lines[lines > 0]
            self.line_runs.add(lines, np.full(lines.size, number))

    def close(self) -> None:
        for writer in (self.documents, self.index, self.sketches, self.exact, self.bands, self.line_runs):
            writer.close()


class Match(Step):
    """Documents of equal digests, and pairs of near duplicates, in one range of hashes."""

    name = "match"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
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

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Decide who is dropped."""
        match, read = self.folders("match"), self.folders("read")
        exact = np.concatenate([np.load(each / "exact.npy") for each in match], axis=1)
        exact = exact[:, np.argsort(exact[0])]
        pairs = _of_firsts(_distinct(np.load(each / "near.npy") for each in match), exact)
        least = plan.recipe.corpus.near_duplicates
        near = duplicates.resolve(pairs, duplicates.Sketches([each / "sketches.bin" for each in read]), least)
        np.savez(folder / "exact.npz", dropped=exact[0], kept=exact[1])
        np.savez(folder / "near.npz", dropped=near.dropped, kept=near.kept, similarity=near.similarity)
        np.save(folder / "dropped.npy", np.union1d(exact[0], near.dropped))
        settled = {
            "exact": _sizes(exact),
            "near": _histogram(near.sizes),
            "dropped": {"exact_duplicate": exact.shape[1], "near_duplicate": int(near.dropped.size)},
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


def dropped_before(read: Sequence[Path], work: Path) -> Counter[str]:
    """How many documents each reason has dropped so far, for a message."""
    dropped: Counter[str] = Counter()
    for folder in read:
        dropped.update(json.loads((folder / "counts.json").read_text("utf-8"))["dropped"])
    return dropped + Counter(json.loads((work / "settle" / "00000" / "settled.json").read_text())["dropped"])


def kept_rows(read: Sequence[Path], dropped: U64) -> Iterator[tuple[NDArray[np.int64], NDArray[np.void]]]:
    """The rows that stay and their index, task by task."""
    for task, folder in enumerate(read):
        first, last = np.searchsorted(
            dropped, np.array([task << duplicates.ROW_BITS, (task + 1) << duplicates.ROW_BITS], np.uint64)
        )
        index = rows_of(folder / "index.bin", INDEX)
        gone = (dropped[first:last] & np.uint64((1 << duplicates.ROW_BITS) - 1)).astype(np.int64)
        kept = np.delete(np.arange(len(index)), gone)
        yield kept, index[kept]


class Count(Step):
    """Lines that many documents repeat, in one range of hashes."""

    name = "count"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Count one range of hashes."""
        records = read_slice(self.folders("read"), "lines", 2, rank, tasks)
        dropped = np.load(self.work / "settle" / "00000" / "dropped.npy")
        repeated = duplicates.repeated_lines(records, dropped, plan.recipe.corpus.repeated_lines)
        np.save(folder / "repeated.npy", repeated)
        return {"lines": records.shape[1], "repeated": repeated.shape[1]}
