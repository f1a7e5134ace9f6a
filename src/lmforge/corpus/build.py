"""Sources → clean, distinct, uncontaminated, split, shuffled documents.

    sources ─▶ read ─▶ match ─▶ settle ─▶ count ─▶ apply ─▶ write ─▶ documents/{train,valid,test}-NNNNN.jsonl.zst
                └──────────── dropped ──────────────┘          └─ synthesize ─▶ documents/train-synthetic-…
                                 └─▶ dropped/dropped-NNNNN.jsonl.zst                         statistics.json,
                                 samples.html

The passes are datatrove pipelines (steps.py) that run here, on Slurm or on Ray (executors.py). Everything random
(split, sampling by weight, order) is a function of a document's text and the seed, and every pass goes through files in
`.corpus.work` beside the result: the same texts give the same bytes with any number of workers, and a run that was
killed goes on with the tasks that are left.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from lmforge.aside import bring_back, set_aside
from lmforge.corpus import spool
from lmforge.corpus.apply import Apply, Write, excerpt
from lmforge.corpus.clean.filters import Trained, filters_fingerprint, filters_report
from lmforge.corpus.executors import run_tasks
from lmforge.corpus.holdout import Hold, Pool, ScanLeaks
from lmforge.corpus.measure.analyse import analyse
from lmforge.corpus.measure.counts import Statistics
from lmforge.corpus.overlap import duplicates
from lmforge.corpus.overlap.decontaminate import build_index, measure_recall, read_benchmarks
from lmforge.corpus.samples import Samples
from lmforge.corpus.shuffle import ShardCounts
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.sources.files import SourcePart
from lmforge.corpus.sources.kinds import Encodings, parts
from lmforge.corpus.splits import SPLITS
from lmforge.corpus.steps import PAIRS_SHOWN, CorpusPlan, Count, Match, Read, Settle, Step
from lmforge.corpus.synthesize.documents import synthesize
from lmforge.corpus.synthesize.translate import Translate
from lmforge.errors import InputError, LmforgeError
from lmforge.machine import cores
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, hash_json

FORMAT = 3
TASK_BYTES = 16 << 20  # parts are gathered into tasks of about this size, larger ones above MOST of them
SLICE_BYTES = 2 << 20  # records compared at once, sorted in memory
# tasks, and slices: each slice opens a file of each task, so more of both would take time with the square of the corpus
MOST = 1024
LARGEST = 64  # times these sizes at most
SMALL = 48 << 20  # bytes of input below which starting worker processes takes longer than it saves
CARRIERS = 100  # documents of the corpus into which benchmark texts are planted to measure recall
ELSEWHERE = {"executor", "workers", "slurm"}  # keys of the recipe that say where the work is done, not what


def build_corpus(
    recipe: Recipe,
    out: Path,
    translators: Mapping[int, Translate] | None = None,
    benchmarks: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, Any]:
    """Make the corpus directory `out` from the recipe's sources and return its figures (also in its statistics.json).

    `translators` gives each back-translation step of the recipe, by its place, what translates for it. `benchmarks` are
    texts by name to keep out, beside those that `corpus.decontaminate` names.
    Figures: documents_in, documents_out (distinct documents kept; in = out + dropped), dropped {reason: count},
    bytes_out, words, entropy {name: {value, definition, sample sizes}}, splits {name: {documents, bytes}} (train counts
    the copies that a source weight above 1 makes, and synthetic documents), notices {what: count} (files passed over,
    damage, repairs), skipped {suffix or reason: count} (of these, what was not read), encodings {name: files, some of
    their names}, synthetic (see `synthesize`), overlap (duplicates: rates, cluster sizes, pairs), decontamination
    (what was found; the recall and precision of planted copies).

    Raises:
        InputError: a source cannot be read (names file and line), or there are too few documents for three splits.
        LmforgeError: the disk is full, a task failed. In every case `out` stays as it was.
    """
    work = work_folder(out)
    try:
        figures = _Build(recipe, work, benchmarks or {}).run(out, translators or {})
    except InputError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except OSError as error:
        raise LmforgeError(
            f"{work}: {error.strerror or error}; mend it (free disk space?) and run the same command again to go on"
        ) from error
    shutil.rmtree(work, ignore_errors=True)
    stable = (
        "documents_in",
        "documents_out",
        "dropped",
        "bytes_out",
        "words",
        "entropy",
        "splits",
        "notices",
        "skipped",
        "encodings",
        "synthetic",
    )
    return {name: figures[name] for name in (*stable, "overlap", "decontamination", "held_out")}


def work_folder(out: Path) -> Path:
    """Where the passes leave their files until the corpus `out` is made."""
    return out.with_name(f".{out.name}.work")


def read_documents(corpus_dir: Path, split: str) -> Iterator[dict[str, Any]]:
    """Stream the documents of one split ("train", "valid" or "test") in their order; verifies no checksums.

    Raises:
        InputError: there is no such split, or a shard is damaged.
    """
    return map(orjson.loads, read_lines(corpus_dir, split))


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


class _Build:
    """One run: the passes, then everything put together."""

    def __init__(self, recipe: Recipe, work: Path, benchmarks: Mapping[str, Iterable[str]]) -> None:
        self.recipe, self.work = recipe, work
        self.notices: Counter[str] = Counter()
        sources = recipe.corpus.sources
        # beside real texts, tasks are made at the end, up to a share of them
        made = set() if recipe.corpus.made_alone else {"procedural"}
        read = [(number, source) for number, source in enumerate(sources) if source.kind not in made]
        pieces = [(number, part) for number, source in read for part in parts(source, self.notices)]
        self.plan = CorpusPlan(
            recipe, tuple(map(tuple, _gathered(pieces, _scaled(TASK_BYTES, sum(part.bytes for _, part in pieces)))))
        )
        self.sizes = [sum(part.bytes for _, part in task) for task in self.plan.tasks]
        self.benchmarks = {
            **{name: list(texts) for name, texts in benchmarks.items()},
            **read_benchmarks(recipe.corpus.decontaminate),
        }
        here = 1 if sum(self.sizes) < SMALL else cores()
        self.workers = recipe.corpus.workers or (here if recipe.corpus.executor == "local" else -1)

    def run(self, out: Path, translators: Mapping[int, Translate]) -> dict[str, Any]:
        """Every pass that is not done yet, then the corpus `out`."""
        self._open()
        self._pass(Read, self.sizes)
        self._pass(Match, self._slices("bands", "exact"))
        self._pass(Settle, [1])
        if self.recipe.corpus.repeated_lines:
            self._pass(Count, self._slices("lines"))
        self._pass(Pool, [1])
        self._pass(ScanLeaks, self.sizes)
        self._pass(Hold, [1])
        self._pass(Apply, self.sizes)
        settled = json.loads((self.work / "settle" / "00000" / "settled.json").read_text())
        settled["held"] = json.loads((self.work / "hold" / "00000" / "hold.json").read_text())
        shards = ShardCounts.holding(settled["held"]["bytes"])
        self._pass(Write, [sum(settled["held"]["bytes"].values()) // shards.total] * shards.total)
        with atomic_directory(out) as folder:
            return self._put_together(folder, settled, translators)

    def _open(self) -> None:
        """The work folder of this recipe and these inputs: what a killed run left of them, or a new one."""
        key = hash_json(
            {
                "format": FORMAT,
                "corpus": self.recipe.corpus.model_dump(mode="json", exclude=ELSEWHERE),
                "seed": self.recipe.seed,
                "tasks": self.plan.tasks,
                "benchmarks": self.benchmarks,
                "filters": filters_fingerprint(self.recipe.corpus),
            }
        )
        mark = self.work / "key"
        if not mark.exists() or mark.read_text() != key:
            if mark.exists():  # hours of passes, perhaps
                set_aside(self.work, "passes over another recipe's corpus")
            shutil.rmtree(self.work, ignore_errors=True)
            if bring_back(self.work, lambda kept: (kept / "key").is_file() and (kept / "key").read_text() == key):
                return
            self.work.mkdir(parents=True)
            if self.benchmarks:
                build_index(self.benchmarks).save(self.work / "benchmarks.npz")
            Trained.of(self.recipe.corpus).save(self.work)
            self.plan.save(self.work / "plan.json")
            mark.write_text(key)

    def _pass(self, step: type[Step], sizes: list[int]) -> None:
        run_tasks(
            f"corpus {step.name}",
            step(self.work),
            sizes,
            self.recipe.corpus,
            self.work / "logs" / step.name,
            self.workers,
        )

    def _slices(self, *names: str) -> list[int]:
        """Sizes of as many slices of hashes as can each be held in memory."""
        read = self._folders("read")
        most = max(spool.spooled_bytes(read, name) for name in names)
        count = max(1, -(-most // _scaled(SLICE_BYTES, most)))
        return [most // count] * count

    def _folders(self, name: str) -> list[Path]:
        return sorted((self.work / name).glob("[0-9]*"))

    def _put_together(
        self, folder: Path, settled: dict[str, Any], translators: Mapping[int, Translate]
    ) -> dict[str, Any]:
        (folder / "documents").mkdir()
        (folder / "dropped").mkdir()
        for each in self._folders("write"):
            for shard in each.iterdir():
                _link(shard, folder / "documents" / shard.name)
        both = [path for task in zip(self._folders("read"), self._folders("apply"), strict=True) for path in task]
        for number, path in enumerate(path for each in both for path in sorted(each.glob("dropped-*"))):
            _link(path, folder / "dropped" / f"dropped-{number:05d}.jsonl.zst")
        figures, samples = self._figures(settled)
        page = samples.page(self.recipe.name, figures["dropped"], figures["documents_out"])
        (folder / "samples.html").write_text(page, "utf-8", "replace")
        figures["decontamination"] = self._decontamination(folder, figures)
        figures["synthetic"] = synthesize(self.recipe, folder, figures["splits"]["train"]["bytes"], translators)
        for what in ("documents", "bytes"):
            figures["splits"]["train"][what] += figures["synthetic"][what]
        figures["analysis"] = analyse(folder, self.recipe)
        (folder / "statistics.json").write_text(
            json.dumps(figures, indent=1, ensure_ascii=False) + "\n", "utf-8", "replace"
        )
        return figures

    def _figures(self, settled: dict[str, Any]) -> tuple[dict[str, Any], Samples]:
        """What the tasks counted, added up."""
        statistics, samples = Statistics(), Samples()
        documents, dropped, notices, self.contaminated = 0, Counter[str](), Counter(self.notices), Counter[str]()
        splits = {split: Counter[str]() for split in SPLITS}
        pairs, lines = [], []
        encodings = Encodings()
        for folder in self._folders("read"):
            counts = json.loads((folder / "counts.json").read_text("utf-8"))
            documents += counts["documents"]
            dropped.update(counts["dropped"])
            notices.update(counts["notices"])
            encodings.merge(counts["encodings"])
            self.contaminated.update(counts["contaminated"])
            samples.merge(counts["samples"])
        for folder in self._folders("apply"):
            counts = json.loads((folder / "counts.json").read_text("utf-8"))
            dropped.update(counts["dropped"])
            samples.merge(counts["samples"])
            pairs += counts["pairs"]
            lines.append(counts["lines"])
            for split in SPLITS:
                splits[split].update(counts["splits"][split])
            statistics.merge(Statistics.from_state(orjson.loads((folder / "statistics.json").read_bytes())))
        measured = statistics.result()
        compared = measured["documents"] + sum(
            dropped[reason] for reason in ("exact_duplicate", "near_duplicate", "repeated_lines")
        )
        figures = {
            "documents_in": documents,
            "documents_out": measured["documents"],
            "dropped": dict(sorted(dropped.items())),
            "bytes_out": measured["bytes"],
            "words": measured["words"],
            "entropy": measured["entropy"],
            "splits": {split: {name: each[name] for name in ("documents", "bytes")} for split, each in splits.items()},
            "notices": dict(sorted(notices.items())),
            "held_out": {name: value for name, value in settled["held"].items() if name != "bytes"},
            "skipped": _skipped(notices),
            "encodings": encodings.state(),
            "copies": sum(each["copies"] for each in splits.values()),
            "overlap": self._overlap(settled, dropped, compared, pairs, lines),
            "filters": filters_report(self.recipe.corpus),
            **{
                name: value
                for name, value in measured.items()
                if name not in ("documents", "bytes", "words", "entropy")
            },
        }
        return figures, samples

    def _overlap(
        self,
        settled: dict[str, Any],
        dropped: Counter[str],
        compared: int,
        pairs: list[dict[str, Any]],
        lines: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Duplicates: how many of the documents compared, in clusters of what sizes; some pairs; repeated lines."""
        examples = {tuple(example) for each in lines for example in each["examples"]}
        return {
            "compared": compared,
            "exact": {
                "documents": dropped["exact_duplicate"],
                "share": dropped["exact_duplicate"] / max(1, compared),
                "cluster_sizes": settled["exact"],
                "definition": "the same but for white space; the first stays",
            },
            "near": {
                "documents": dropped["near_duplicate"],
                "share": dropped["near_duplicate"] / max(1, compared),
                "cluster_sizes": settled["near"],
                "least_similarity": self.recipe.corpus.near_duplicates,
                "definition": "at least such a share s of the words, in order, in common with one that "
                "stays; s and r solve "
                "s·r^(n-1) = 2J / (1 + J), r ≥ s, for the Jaccard similarities J of the runs of n = 2 and n = 4 words",
                "pairs": self._shown(pairs),
            },
            "lines": {
                "least_documents": self.recipe.corpus.repeated_lines,
                **{name: sum(each[name] for each in lines) for name in ("removed", "bytes", "documents")},
                "examples": [
                    {"documents": count, "line": text} for count, text in sorted(examples, reverse=True)[:PAIRS_SHOWN]
                ],
            },
        }

    def _shown(self, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Near duplicates to look at: a random choice that no order of input changes, each with what was kept in its
        place."""
        shown = []
        for pair in sorted(pairs, key=lambda pair: str(pair["rank"]))[:PAIRS_SHOWN]:
            task, row = divmod(pair["kept"], 1 << duplicates.ROW_BITS)
            lines = spool.read_lines(self.work / "read" / f"{task:05d}" / "documents.bin")
            kept = orjson.loads(next(line for number, line in enumerate(lines) if number == row))
            shown.append({"similarity": pair["similarity"], "kept": excerpt(kept), "dropped": pair["dropped"]})
        return shown

    def _decontamination(self, folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
        """What was found of each benchmark, and how well planted copies are found."""
        if not self.benchmarks:
            return {"benchmarks": 0}
        index = build_index(self.benchmarks)
        carriers = []
        for _, line in lines_of(min((folder / "documents").glob("train-[0-9]*"))):
            carriers.append(orjson.loads(line)["text"])
            if len(carriers) == CARRIERS:
                break
        kinds = ("windowed", "short", "lines", "too_short")
        return {
            "benchmarks": len(index.names), "texts": dict(zip(kinds, index.texts, strict=True)),
            "documents": figures["dropped"].get("contaminated", 0), "found": dict(sorted(self.contaminated.items())),
            "planted": measure_recall(self.benchmarks, index, carriers),
        }  # fmt: skip


def _skipped(notices: Counter[str]) -> dict[str, int]:
    """What of the sources was not read, by suffix or reason: files of other kinds, and damage."""
    skipped = Counter[str]()
    for notice, count in notices.items():
        kind, colon, reason = notice.partition(": ")
        if colon and kind in ("ignored", "skipped"):
            skipped[reason] += count
    return dict(sorted(skipped.items()))


def _scaled(size: int, total: int) -> int:
    """`size` bytes, or as many more as make at most `MOST` pieces of `total`, within bounds."""
    return min(max(size, total // MOST), LARGEST * size)


def _gathered(pieces: list[tuple[int, SourcePart]], most: int) -> Iterator[list[tuple[int, SourcePart]]]:
    """Neighbouring parts together, up to about `most` bytes."""
    held: list[tuple[int, SourcePart]] = []
    size = 0
    for piece in pieces:
        if held and size + piece[1].bytes > most:
            yield held
            held, size = [], 0
        held.append(piece)
        size += piece[1].bytes
    if held:
        yield held


def _link(source: Path, target: Path) -> None:
    """The file under another name too; a copy where the file system has no links."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
