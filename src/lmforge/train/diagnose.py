"""Which documents, and which layer, a batch that had to be skipped has to blame.

    rows of the skipped batch ─▶ losses that are not finite (or the largest) ─▶ documents' ids
                                └▶ forward and backward again under hooks ─▶ the first layer that is not finite

It runs on the rare step that was skipped, so it may be slow: row by row, in eager code.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError
from lmforge.parallel.layout import Layout
from lmforge.parallel.shares import local
from lmforge.progress import log
from lmforge.tokens.loader import Batch, Loader
from lmforge.tokens.shards import Shards

MOST_NAMED = 20  # documents of a skipped batch
MOST_SEARCHED = 2_000_000_000  # bytes of a split whose documents are searched for their ids
ROWS_SHOWN = 3  # whose documents are named where every loss is finite


class Diagnosis:
    """Looks for what of a skipped batch is to blame."""

    def __init__(self, layout: Layout, model: nn.Module, loader: Loader, corpus: Path) -> None:
        self.layout, self.model, self.loader, self.corpus = layout, model, loader, corpus

    def find(self, step: int, batch: Batch, loss: Callable[[Batch], Tensor], cause: str) -> dict[str, Any]:
        """What of a skipped batch is to blame, looked for in all ranks, and said: documents, and the first layer that
        is not finite. `loss` gives that of some rows.

        Documents are those of the rows whose loss is not finite, or else of the three rows with the largest loss.
        """
        if self.layout.shares_network:  # no process can run a row by itself
            return self.name_rows(step, batch, cause)
        with torch.no_grad():
            losses = [float(loss(batch.part(row, 1))) for row in range(len(batch.inputs))]
        bad = [row for row, nats in enumerate(losses) if not math.isfinite(nats)]
        worst = bad or sorted(range(len(losses)), key=losses.__getitem__, reverse=True)[:ROWS_SHOWN]
        layer = None
        if "times that" not in cause:
            rows = bad or range(len(losses))
            places = (first_non_finite(self.model, partial(loss, batch.part(row, 1))) for row in rows)
            layer = next((place for place in places if not place.startswith("nothing")), None)
        numbers = self.numbers(step, worst)
        reports = self.layout.gather({"numbers": numbers, "bad": bool(bad), "layer": layer})
        guilty = [report for report in reports if report["bad"]] or reports
        layer = next((report["layer"] for report in guilty if report["layer"]), None)
        names = document_ids(
            self.corpus,
            self.loader.shards,
            sorted({number for report in guilty for number in report["numbers"]})[:MOST_NAMED],
        )
        if self.layout.is_main:
            log(
                f"train: step {step + 1} skipped: {cause}; documents {', '.join(names)}"
                + (f"; first not finite: {layer}" if layer else "")
            )
        return {"documents": names, "layer": layer}

    def numbers(self, step: int, rows: Sequence[int]) -> list[int]:
        """The documents of some of this process's rows, by number."""
        first = self.loader.share(self.layout.data_rank, self.layout.data_size, step).start
        return sorted({int(number) for row in rows for number in self.loader.documents(step, first + row)})

    def name_rows(self, step: int, batch: Batch, cause: str) -> dict[str, Any]:
        """The documents of a whole batch, where no part of it can be looked at alone."""
        reports = self.layout.gather(self.numbers(step, range(len(batch.inputs))))
        numbers = sorted({number for report in reports for number in report})[:MOST_NAMED]
        names = document_ids(self.corpus, self.loader.shards, numbers)
        if self.layout.is_main:
            log(f"train: step {step + 1} skipped: {cause}; its documents are {', '.join(names)}")
        return {"documents": names, "layer": None}


def document_ids(corpus: Path, shards: Shards, numbers: Sequence[int]) -> list[str]:
    """The ids of documents by their number in a split; "number N of the train split" where the corpus is gone or too
    large to search.

    A shard keeps one kind's documents in the order of the corpus, so a document is known by how many of its kind come
    before it.
    """
    labels = shards.labels
    kinds = {number: (shards.sources[labels[number, 0]], shards.genres[labels[number, 1]]) for number in numbers}
    places = {
        (*kinds[number], int((labels[:number] == labels[number]).all(axis=1).sum())): number for number in numbers
    }
    ids: dict[int, str] = {}
    if shards.bytes <= MOST_SEARCHED:
        seen: Counter[tuple[str, str]] = Counter()
        with contextlib.suppress(InputError):  # no corpus beside these shards
            for document in read_documents(corpus, shards.split):
                kind = str(document.get("source", "unknown")), str(document.get("genre", "unknown"))
                number = places.get((*kind, seen[kind]))
                seen[kind] += 1
                if number is not None:
                    ids[number] = str(document.get("id"))
                    if len(ids) == len(places):
                        break
    return [ids.get(number, f"number {number} of the {shards.split} split") for number in numbers]


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number."""
    return bool(torch.isfinite(local(tensor)).all())


def first_bad_gradient(model: nn.Module) -> str | None:
    """The parameter nearest to the loss whose gradient is not finite; None where all are."""
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not is_finite(parameter.grad)
    ]
    # tied to the output, it is bad whenever anything is
    inside = [name for name in bad if not name.startswith("embed.")]
    return (inside or bad)[-1] if bad else None


def first_non_finite(model: nn.Module, loss: Callable[[], Tensor]) -> str:
    """Where in the network numbers first stop being finite: runs `loss`, and its backward pass when that was fine;
    gradients are dropped."""
    for name, parameter in model.named_parameters():
        if not is_finite(parameter):
            return f"weights {name}"
    broken: list[str] = []  # layers, in the order they are run

    def look(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not is_finite(output):
            broken.append(name)

    hooks = [module.register_forward_hook(partial(look, name)) for name, module in model.named_modules() if name]
    try:
        value = loss()
    finally:
        for hook in hooks:
            hook.remove()
    if broken:
        return f"output of {broken[0]}"
    if not is_finite(value):
        return "the loss itself"
    value.backward()
    bad = first_bad_gradient(model)
    model.zero_grad(set_to_none=True)
    return f"gradient of {bad}" if bad else "nothing, when its rows are computed alone"
