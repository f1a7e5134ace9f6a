"""Held-out text that is held out: which documents are validation and test, so that training does not hold them too.

    pool    candidates, in the order of their places; the table of their runs         pool/00000/     one task
    scan    which of these runs stand in the documents outside of the pool            scan/TASK/      a task for each of
                                                                                                      read
    hold    valid and test out of the pool; what is left of shared runs is marked     hold/00000/     one task

A candidate of which more than `corpus.leaked_share` stands in training goes to training, and what it holds then stands
there too: so splitting keeps what overlaps together. Validation and test each get `LEAST_HELD` documents or
`LEAST_BYTES` of text where that is at most a tenth of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from lmforge.corpus.overlap import duplicates
from lmforge.corpus.overlap.leaks import WINDOW, Windows
from lmforge.corpus.repeated import RepeatedLines
from lmforge.corpus.splits import VALID_SHARE, refuse_too_few
from lmforge.corpus.spool import read_lines
from lmforge.corpus.steps import CorpusPlan, Step, dropped_before, kept_rows

LEAST_HELD = 64  # documents of validation, and of test, …
LEAST_BYTES = 1_000_000  # … or so many bytes, …
MOST_SHARE = 0.1  # … but no more of the corpus than this
MOST_LEAKED = 0.02  # of a split's characters; beyond it the bound for a document is halved
POOL = 3  # times as many candidates as are wanted
ROUNDS = 50  # of moving leaked candidates; in practice two to four


class Held(NamedTuple):
    """What `hold` decided: rows of `read` (task << ROW_BITS | row, ascending), the split of each, its leaked spans."""

    rows: NDArray[np.uint64]
    splits: list[str]
    spans: list[list[list[int]]]

    @classmethod
    def load(cls, folder: Path) -> Held:
        """Read what `Hold` wrote."""
        data = json.loads((folder / "held.json").read_text())
        return cls(np.array(data["rows"], np.uint64), data["splits"], data["spans"])

    def of_task(self, rank: int) -> dict[int, tuple[str, list[list[int]]]]:
        """Row → split and leaked spans, of one task of `read`."""
        first, last = np.searchsorted(
            self.rows, np.array([rank << duplicates.ROW_BITS, (rank + 1) << duplicates.ROW_BITS], np.uint64)
        )
        low = (1 << duplicates.ROW_BITS) - 1
        return {int(self.rows[at]) & low: (self.splits[at], self.spans[at]) for at in range(first, last)}


class Wanted(NamedTuple):
    """What a held-out split takes: all that lie below a bound, and then more until either of two counts is reached."""

    below: float
    documents: int
    bytes: int


class Pool(Step):
    """The documents that may be held out, and the table of their runs."""

    name = "pool"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Choose the candidates by their places and index their texts."""
        read, dropped = self.folders("read"), np.load(self.work / "settle" / "00000" / "dropped.npy")
        places, sizes, rows = [], [], []
        for task, (kept, index) in enumerate(kept_rows(read, dropped)):
            places.append(index["place"])
            sizes.append(index["bytes"].astype(np.int64))
            rows.append(kept.astype(np.uint64) | np.uint64(task << duplicates.ROW_BITS))
        place, size, row = (np.concatenate(each) for each in (places, sizes, rows))
        holdout = plan.recipe.corpus.holdout
        refuse_too_few(holdout, place.size, lambda: dropped_before(read, self.work))
        wanted = wanted_of(holdout, place.size, int(size.sum()))
        order = np.lexsort((row, place))
        order = order[place[order] < 1 - 2**-53]  # what is made for training lies at the end
        least = _enough(size[order], 2 * POOL * wanted["test"].documents, 2 * POOL * wanted["test"].bytes)
        count = max(least, int(np.searchsorted(place[order], holdout)))
        while 0 < count < order.size and place[order[count]] == place[order[count - 1]]:
            count += 1  # documents that must not be parted
        pool = order[: max(2, min(count, order.size - 1))]
        texts = _texts(self.work, np.sort(row[pool]), plan)
        pool = np.array([each for each in pool if int(row[each]) in texts])  # those that repeated lines leave whole
        Windows.of(texts[int(each)] for each in row[pool]).save(folder / "windows.npz")
        np.savez(folder / "pool.npz", rows=row[pool], places=place[pool], sizes=size[pool])
        totals = {"documents": int(place.size), "bytes": int(size.sum()), "wanted": wanted}
        (folder / "totals.json").write_text(json.dumps(totals))
        return {"candidates": len(pool)}


class ScanLeaks(Step):
    """Which runs of the candidates stand in the documents of one task of `read` that are no candidates."""

    name = "scan"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Mark the runs that are met."""
        windows = Windows.load(self.work / "pool" / "00000" / "windows.npz")
        with np.load(self.work / "pool" / "00000" / "pool.npz") as pool:
            candidates = set(pool["rows"].tolist())
        marks = np.zeros(windows.table.size, np.uint8)
        for row, text in _surviving(self.work, rank, plan):
            if (rank << duplicates.ROW_BITS | row) not in candidates:
                windows.mark(text, marks)
        np.save(folder / "marks.npy", np.packbits(marks))
        return {"marked": int(marks.sum())}


class Hold(Step):
    """Validation and test out of the candidates that do not stand in training."""

    name = "hold"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        """Decide, and mark what is left of shared runs."""
        pool_folder = self.work / "pool" / "00000"
        windows = Windows.load(pool_folder / "windows.npz")
        totals = json.loads((pool_folder / "totals.json").read_text())
        with np.load(pool_folder / "pool.npz") as pool:
            rows, places, sizes = pool["rows"], pool["places"], pool["sizes"]
        outside = np.zeros(windows.table.size, np.uint8)
        for each in self.folders("scan"):
            outside |= np.unpackbits(np.load(each / "marks.npy"), count=outside.size)
        wanted = {split: Wanted(*each) for split, each in totals["wanted"].items()}
        chosen = choose(windows, outside, places, sizes, wanted, plan.recipe.corpus.leaked_share)
        marks = marked_by(windows, outside, [n for n in range(len(rows)) if n not in chosen.splits])
        held = sorted(chosen.splits, key=lambda number: int(rows[number]))
        spans = {number: [list(span) for span in windows.spans(number, marks)] for number in held}
        content = {
            "rows": [int(rows[number]) for number in held],
            "splits": [chosen.splits[number] for number in held],
            "spans": [spans[number] for number in held],
        }
        (folder / "held.json").write_text(json.dumps(content))
        figures = _figures(windows, chosen, spans, plan.recipe.corpus.leaked_share)
        figures["bytes"] = {split: int(sizes[numbers].sum()) for split, numbers in chosen.of_split().items()}
        figures["bytes"]["train"] = totals["bytes"] - sum(figures["bytes"].values())
        (folder / "hold.json").write_text(json.dumps(figures))
        return {"valid": figures["valid"]["documents"], "test": figures["test"]["documents"]}


class Chosen(NamedTuple):
    """Candidates by number: the split of those held out, and which went to training since it holds them too."""

    splits: dict[int, str]
    leaked: set[int]
    forced: bool  # all candidates stand in training: the least leaked were held out all the same

    def of_split(self) -> dict[str, list[int]]:
        """The numbers of each held-out split."""
        return {name: [n for n, split in self.splits.items() if split == name] for name in ("valid", "test")}


def choose(
    windows: Windows,
    outside: NDArray[np.uint8],
    places: NDArray[np.float64],
    sizes: NDArray[np.int64],
    wanted: dict[str, Wanted],
    most: float,
) -> Chosen:
    """Valid, then test, out of candidates in the order of their places; those of which more than the share `most`
    stands in training (`outside`, or any candidate that is not held out) go there.

    Candidates of equal place stay together. With `most` 1 nothing that stands in training is minded; else, where all
    documents of a split are within the bound and still more than MOST_LEAKED of its characters stand in training, the
    bound is halved.
    """
    groups = [np.flatnonzero(places == place).tolist() for place in np.unique(places)]
    leaked: set[int] = set()
    splits: dict[int, str] = {}
    for _ in range(ROUNDS):
        splits = filled([group for group in groups if not set(group) & leaked], places, sizes, wanted)
        training = [number for number in range(len(places)) if number not in splits]
        marks = marked_by(windows, outside, training)
        shares = {number: windows.share(number, marks) for number in splits}
        wrong = {number for number, share in shares.items() if share > most}
        if not wrong and most < 1 and _leaky(splits, shares, windows.lengths):
            most /= 2  # each document is within its bound, all together are not
            wrong = {number for number, share in shares.items() if share > most}
        wrong = {each for group in groups if set(group) & wrong for each in group}
        if not wrong:
            break
        leaked |= wrong
    else:
        splits = {number: split for number, split in splits.items() if number not in leaked}
    if {"valid", "test"} <= set(splits.values()):
        return Chosen(splits, leaked, False)
    worst = [max(windows.share(number, outside) for number in group) for group in groups]
    least = sorted(range(len(groups)), key=lambda at: (worst[at], at))[:2]
    forced = {number: split for at, split in zip(least, ("valid", "test"), strict=False) for number in groups[at]}
    return Chosen(forced, leaked - set(forced), True)


def _leaky(splits: dict[int, str], shares: dict[int, float], lengths: NDArray[np.int64]) -> bool:
    """Whether more than MOST_LEAKED of a split's characters stand in training."""
    for split in ("valid", "test"):
        numbers = [number for number, name in splits.items() if name == split]
        leaked = sum(shares[number] * int(lengths[number]) for number in numbers)
        if leaked > MOST_LEAKED * max(1, int(lengths[numbers].sum())):
            return True
    return False


def marked_by(windows: Windows, outside: NDArray[np.uint8], training: list[int]) -> NDArray[np.uint8]:
    """The runs that stand outside of the pool or in those candidates that are trained on."""
    marks = outside.copy()
    for number in training:
        marks[windows.places[windows.of_document(number)]] = 1
    return marks


def filled(
    groups: list[list[int]], places: NDArray[np.float64], sizes: NDArray[np.int64], wanted: dict[str, Wanted]
) -> dict[int, str]:
    """Groups in order, each whole: valid up to its bound, and on until it has what it needs at least; then test.

    As long as the bounds suffice, a document's split depends on its own text alone and stays when others are added.
    """
    splits: dict[int, str] = {}
    at = 0
    for split in ("valid", "test"):
        documents = size = 0
        need = wanted[split]
        while at < len(groups) and (
            places[groups[at][0]] < need.below or not documents or (documents < need.documents and size < need.bytes)
        ):
            splits |= dict.fromkeys(groups[at], split)
            documents, size = documents + len(groups[at]), size + int(sizes[groups[at]].sum())
            at += 1
    return splits


def wanted_of(holdout: float, documents: int, size: int) -> dict[str, Wanted]:
    """What each held-out split needs of a corpus of so many documents and bytes."""
    return {
        split: Wanted(
            below,
            max(1, min(LEAST_HELD, int(MOST_SHARE * documents))),
            max(1, min(LEAST_BYTES, int(MOST_SHARE * size))),
        )
        for split, below in (("valid", VALID_SHARE * holdout), ("test", holdout))
    }


def _enough(sizes: NDArray[np.int64], documents: int, size: int) -> int:
    """How many from the front make so many documents, or so many bytes."""
    return min(documents, int(np.searchsorted(np.cumsum(sizes), size)) + 1, sizes.size)


def _figures(windows: Windows, chosen: Chosen, spans: dict[int, list[list[int]]], most: float) -> dict[str, Any]:
    """What statistics.json says of leaks."""
    figures: dict[str, Any] = {
        "window_characters": WINDOW,
        "compared_share": 1 / (windows.mask + 1),
        "largest_share_of_a_document": most,
        "moved_to_training": len(chosen.leaked),
        "all_candidates_leak": chosen.forced,
        "definition": f"characters of held-out documents in runs of {WINDOW} characters or more that stand in training",
    }
    for split, numbers in chosen.of_split().items():
        length = int(windows.lengths[numbers].sum())
        leaked = sum(stop - start for number in numbers for start, stop in spans[number])
        figures[split] = {
            "documents": len(numbers),
            "characters": length,
            "leaked_characters": leaked,
            "leaked_share": leaked / max(1, length),
        }
    return figures


def _surviving(work: Path, rank: int, plan: CorpusPlan) -> Iterator[tuple[int, str]]:
    """Row and final text of the documents of one task of `read` that are no duplicates, without repeated lines."""
    source = work / "read" / f"{rank:05d}"
    dropped = np.load(work / "settle" / "00000" / "dropped.npy")
    first, last = np.searchsorted(
        dropped, np.array([rank << duplicates.ROW_BITS, (rank + 1) << duplicates.ROW_BITS], np.uint64)
    )
    gone = set((dropped[first:last] & np.uint64((1 << duplicates.ROW_BITS) - 1)).tolist())
    lines = RepeatedLines.of(work)
    for row, line in enumerate(read_lines(source / "documents.bin")):
        if row not in gone:
            document = orjson.loads(line)
            if not lines.strip_from(document) or len(document["text"]) >= plan.recipe.corpus.min_chars:
                yield row, document["text"]


def _texts(work: Path, rows: NDArray[np.uint64], plan: CorpusPlan) -> dict[int, str]:
    """The final texts of some rows (ascending)."""
    texts: dict[int, str] = {}
    for task in np.unique(rows >> np.uint64(duplicates.ROW_BITS)).tolist():
        wanted = {int(row) for row in rows if int(row) >> duplicates.ROW_BITS == task}
        for row, text in _surviving(work, int(task), plan):
            if (number := int(task) << duplicates.ROW_BITS | row) in wanted:
                texts[number] = text
    return texts
