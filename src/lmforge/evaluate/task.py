"""What a task is given, and what it gives back.

    Context (model, tokenizer, recipe, corpus, tokens) ──Task.run──▶ Score (value, interval, items, what must be alike,
    a row per item)

A new task is a function from Context to Score and a line in `harness.TASKS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmforge.corpus.build import read_documents
from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.recipe import Recipe
from lmforge.record import hash_json
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import Shards

SEED = 0  # of every draw in evaluation; the recipe's seed is the model's, and models of several seeds must compare


@dataclasses.dataclass(frozen=True)
class Document:
    """A test document: its row in the document index of the test shards, where it comes from, its text and the text's
    SHA-256."""

    row: int
    id: str
    genre: str
    source: str
    text: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Score:
    """A value with its 95% interval, the items it rests on, and what must be alike for another value to compare with
    it.

    `comparison_key`: parts of the fingerprint (the harness adds tokenizer, seed, format and dtype); its part "machine",
    where there is one, says where a speed was measured. `rows`: one dictionary an item. `ratio`: the fields of a row
    whose sums make the value, value = Σ first / Σ second (second "" counts items); `compare` pairs two models' rows by
    it. A task that cannot be asked of these texts gives value None, 0 items and the reason in `not_applicable`.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    items: int
    higher_is_better: bool
    comparison_key: dict[str, Any]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ratio: tuple[str, str] | None = None
    not_applicable: str | None = None


@dataclasses.dataclass
class Context:
    """What a task may read. One context serves all models of a run in turn: `model` is the present one (None for a
    baseline, which comes last), `scores` what earlier tasks found, by task and model's name.
    """

    recipe: Recipe
    corpus_dir: Path
    tokens_dir: Path
    tokenizer: Tokenizer
    model: GPT | None = None
    scores: dict[str, dict[str, Score]] = dataclasses.field(default_factory=dict)

    @property
    def network(self) -> GPT:
        """The present model."""
        assert self.model is not None, "a baseline has no model"
        return self.model

    @cached_property
    def shards(self) -> Shards:
        """The tokens of the test split."""
        return Shards.open(self.tokens_dir, "test")

    @cached_property
    def documents(self) -> list[Document]:
        """The test documents whose language is scored, in their order: all, or whole ones within `evaluate.max_tokens`
        tokens.

        Raises:
            InputError: corpus and tokens do not belong together.
        """
        digests = [text_digest(document) for document in read_documents(self.corpus_dir, "test")]
        table = self.shards.documents
        if len(digests) != len(table):
            raise InputError(
                f"{self.tokens_dir}: {len(table)} test documents, but {self.corpus_dir} has {len(digests)}; "
                "run the tokens stage again"
            )
        chosen = choose(digests, [int(tokens) for tokens in table[:, 1]], self.recipe.evaluate.max_tokens)
        kept = []
        for row, document in enumerate(read_documents(self.corpus_dir, "test")):
            if row not in chosen:
                continue
            if len(document["text"].encode("utf-8", "replace")) != table[row, 2]:
                raise InputError(
                    f"{self.tokens_dir}: test document {document['id']!r} is another text in {self.corpus_dir}; "
                    "run the tokens stage again"
                )
            genre, source = str(document.get("genre", "unknown")), str(document.get("source", "unknown"))
            kept.append(Document(row, str(document["id"]), genre, source, document["text"], digests[row]))
        return kept

    @cached_property
    def data_hash(self) -> str:
        """One hash of `documents`: their texts, in order."""
        return hash_json([document.digest for document in self.documents])


def text_digest(document: dict[str, Any]) -> str:
    """SHA-256 (hex) of a document's text."""
    return hashlib.sha256(document["text"].encode("utf-8", "replace")).hexdigest()


def choose(digests: list[str], tokens: list[int], limit: int | None) -> set[int]:
    """Rows of whole documents, in the order of their digests, as long as their tokens stay within `limit`; at least
    one.

    Which documents are taken depends on their own texts, not on their order, and hardly on what else there is.
    """
    if limit is None:
        return set(range(len(digests)))
    chosen: set[int] = set()
    total = 0
    for row in sorted(range(len(digests)), key=lambda row: digests[row]):
        if chosen and total + tokens[row] > limit:
            break
        chosen.add(row)
        total += tokens[row]
    return chosen


def device_of(model: GPT) -> torch.device:
    """Where a model's tensors lie."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@dataclasses.dataclass(frozen=True)
class Task:
    """A named way to score. `per_model` is False for a baseline: it is run once, after all models. `format` is raised
    whenever the same model on the same texts would come out differently. `texts` gives what the task asks of a model,
    where that stands in files or in the task itself: a corpus whose model is scored by it must not hold them.
    """

    name: str
    run: Callable[[Context], Score]
    per_model: bool = True
    format: int = 1
    texts: Callable[[Recipe], Iterable[str]] | None = None
