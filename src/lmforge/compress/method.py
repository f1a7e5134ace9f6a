"""What a compression method is, and the registry of them. The chain, the loss budget and the measuring know only this.

    recipe's step ─▶ settings ─┐
    model, context ────────────┴─apply─▶ Compressed {model, entry, details} ─give_back(units)─▶ Compressed …
    config.json: entry ─────────restore─▶ model of the same structure, to be filled with the file's tensors

A method is one class in one file, registered in one line: CONTRIBUTING.md shows one under "Adding a compression
method". Its settings are a section of the recipe, found by `method = "NAME"` in `[[compress.steps]]`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from lmforge.formats.registry import RESTORERS
from lmforge.model.gpt import GPT
from lmforge.recipe import CompressStep
from lmforge.recipe.registry import COMPRESSION_METHODS, COMPRESSION_STEPS
from lmforge.record import content_hash, hash_file
from lmforge.registry import Registry
from lmforge.tokens.loader import Batch

Evaluate = Callable[[GPT], dict[str, float]]
S = TypeVar("S", bound=CompressStep)


@dataclasses.dataclass(frozen=True)
class CalibrationBatch:
    """Rows of the training split as training reads them: `inputs` (B,T) int64; `targets` (B,T) int64, the token after
    each, −1 where the loss leaves it out; `documents` (B,T), where rows pack several texts, as in `GPT.hidden`."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None

    @classmethod
    def of_rows(cls, rows: Batch) -> CalibrationBatch:
        """What the loader gives."""
        documents = None if rows.documents is None else torch.from_numpy(rows.documents)
        return cls(torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets), documents)

    @classmethod
    def of_tokens(cls, tokens: Tensor) -> CalibrationBatch:
        """Rows (B,T) of plain text, in which every token counts but a row's first."""
        ends = torch.full_like(tokens[:, :1], -1)
        return cls(tokens, torch.cat((tokens[:, 1:], ends), dim=1))

    def split(self, rows: int) -> list[CalibrationBatch]:
        """Its rows, so many at a time."""
        parts = [None if each is None else each.split(rows) for each in (self.inputs, self.targets, self.documents)]
        inputs, targets, documents = parts
        assert inputs is not None
        assert targets is not None
        return [
            CalibrationBatch(*pair, documents[number] if documents else None)
            for number, pair in enumerate(zip(inputs, targets, strict=True))
        ]

    def of_which_some_count(self) -> CalibrationBatch:
        """Less the rows in which nothing counts, which say nothing of the loss; all of them where none does."""
        rows = self.counts.any(1)
        rows = rows if bool(rows.any()) else ~rows
        documents = None if self.documents is None else self.documents[rows]
        return CalibrationBatch(self.inputs[rows], self.targets[rows], documents)

    @property
    def counts(self) -> Tensor:
        """Where a prediction counts in the loss: (B,T) bool."""
        return self.targets >= 0


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may use beside its model and its settings.

    `calibration`: a few rows of the training split, four at a time. `draw(n)`: batch n = 0, 1, 2, … of the same split
    without end, the same whenever it is asked for; what is trained draws from it. `evaluate(model)` gives at least
    `bits_per_byte`, of the tokens that count. `folder` is the step's own: what is kept there is found again when the
    stage goes on after an interruption, and goes when it is done; a method makes it when it needs it. What steps share
    (a cache of the teacher's answers) may be kept in the folder above it. `teacher` is the model before the first step,
    `tokenizer` the file of its tokens, where there is one.
    """

    calibration: Sequence[CalibrationBatch]
    draw: Callable[[int], CalibrationBatch]
    evaluate: Evaluate
    seed: int
    folder: Path
    teacher: GPT
    tokenizer: Path | None = None


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What a method made: `entry` is for config.json, so that `restore` can rebuild the model's structure; `details`
    are for the report. Both are JSON. `fresh`: the model is made new, of plain modules, so that the entries of earlier
    steps describe it no more."""

    model: GPT
    entry: Mapping[str, Any]
    details: Mapping[str, Any]
    fresh: bool = False


class Method(abc.ABC, Generic[S]):
    """A way of making a model smaller or faster. It changes no model that it is given."""

    name: ClassVar[str]
    settings: type[S]  # the section of a step: `method: Literal[NAME] = NAME`, and keys of its own

    @abc.abstractmethod
    def apply(self, model: GPT, settings: S, context: Context, kept: Collection[str] = ()) -> Compressed:
        """The compressed model; the units named in `kept` stay as they are in `model`."""

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """Give a network built from its config the structure that `apply` left, for `tensors` to fill. By default it
        has it already: what the config describes, or weights alone that changed.

        Raises:
            InputError: the entry or a tensor is not of the kind that the method writes (names it).
        """
        return model

    def inputs(self, settings: S) -> Sequence[Path]:
        """The models that the settings name; other ones make another result."""
        return ()

    def units(self, model: GPT, settings: S) -> Sequence[str]:
        """The parts that a loss budget can give back, each alone: names of layers, as a rule. By default none."""
        return ()

    def give_back(
        self, before: GPT, result: Compressed, units: Collection[str], settings: S, context: Context
    ) -> Compressed:
        """`result`, which `apply` made of `before`, with `units` as they were before. By default the method is applied
        anew without them; one for which that is dear puts them back in a copy of `result.model`."""
        return self.apply(before, settings, context, units)


def inputs_of(steps: Sequence[CompressStep]) -> dict[str, str]:
    """The models that steps name, {name: fingerprint}, "gone" where one is not there."""
    prints = {}
    for number, step in enumerate(steps):
        for path in METHODS[step.method].inputs(step):
            prints[f"step {number + 1}: {path}"] = _fingerprint(path)
    return prints


def _fingerprint(path: Path) -> str:
    """Of a model's folder by its manifest, of a file by its bytes."""
    known = content_hash(path) if path.is_dir() else hash_file(path) if path.is_file() else None
    return known or "gone"


METHODS: Registry[Method[Any]] = Registry("compression method", COMPRESSION_METHODS)


def register(method: Method[Any]) -> None:
    """Make a method known: to recipes, to the compress stage, and to whatever loads what it made.

    Raises:
        ValueError: its section does not have `method` = its name, or another method has that name.
    """
    if method.settings.model_fields["method"].default != method.name:
        raise ValueError(f"{method.settings.__name__}.method: its default has to be {method.name!r}, the method's name")
    METHODS.register(method.name, method)
    COMPRESSION_STEPS.register(method.name, method.settings)
    RESTORERS.register(method.name, method)
