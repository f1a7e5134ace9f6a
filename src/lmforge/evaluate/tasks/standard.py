"""Standard benchmarks, zero- and few-shot, by lm-evaluation-harness's own definitions and metrics (`engine`).

    pack ─▶ documents ─▶ the harness's prompts ─▶ our log-likelihoods, logged as items end ─▶ its metrics, an item each
         ─▶ Score: interval over items, contaminated and clean items apart, how many items each joining rule met

`tasks = ["hellaswag"]`, or `[[evaluate.tasks]]` with `shots = 5`. Which there are: `evaluate.definitions`.
"""

from __future__ import annotations

import math
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt

from lmforge.evaluate import engine
from lmforge.evaluate.definitions import DEFINITIONS, FAMILIES
from lmforge.evaluate.engine import Definition, Document, Prepared
from lmforge.evaluate.item_log import ItemLog
from lmforge.evaluate.joins import puts_begin
from lmforge.evaluate.leaked_items import leaked_items
from lmforge.evaluate.measures import f1_of, matthews, pearson, spearman
from lmforge.evaluate.task import SEED, Content, Context, Score, Task, is_number, register
from lmforge.generate.continuations import Continuations
from lmforge.intervals import Numbers, bootstrap, wilson
from lmforge.model.gpt import GPT
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TaskSettings
from lmforge.recipe.types import Positive
from lmforge.record import hash_json

NAMES = {
    "acc": "accuracy", "acc_norm": "accuracy, length-normalised", "perplexity": "perplexity of the last word",
    "mcc": "Matthews correlation", "f1": "F1", "pearson": "Pearson correlation", "spearman": "Spearman correlation",
}  # fmt: skip
_SCORERS: weakref.WeakKeyDictionary[GPT, dict[int | None, Continuations]] = weakref.WeakKeyDictionary()


class StandardSettings(TaskSettings):
    """Settings of a standard benchmark; `limit` counts items, chosen by their hash."""

    shots: NonNegativeInt = 0  # answered examples before each question
    batch_tokens: Positive | None = None  # tokens of one pass; no figure depends on it


class Standard(Task[StandardSettings]):
    """One of the harness's tasks."""

    settings = StandardSettings
    definition: Definition

    def defaults(self, recipe: Recipe) -> dict[str, Any]:
        """Every item: nothing is written."""
        return {}

    def texts(self, settings: StandardSettings) -> Iterable[str]:
        """What the items hold, for the corpus to keep out."""
        for document in engine.documents_of(self.definition, settings.limit):
            yield from texts_of(document)

    def run(self, context: Context, settings: StandardSettings) -> Score:
        """Ask every item."""
        from lmforge.evaluate.harness_model import HarnessModel

        engine.installed()
        begins = puts_begin(context.tokenizer)
        with tempfile.TemporaryDirectory(prefix="lmforge-tasks-") as folder:
            prepared = engine.prepare(self.definition, Path(folder), settings.shots, settings.limit)
            with ItemLog(context.items_dir, hash_json(self._log_key(context, prepared, begins))) as log:
                continuations = scorer(context.network, settings.batch_tokens)
                model = HarnessModel(context.network, context.tokenizer, log, begins, continuations)
                samples, figures = engine.run(prepared, model)
                leaked = self._leaked(context, prepared, log)
        rows = [self._row(sample, model.rules, model.cut, leaked) for sample in samples]
        key = {
            "data": prepared.data,
            "prompts": hash_json([sample["arguments"] for sample in samples]),
            "template": f"lm_eval {engine.installed()}: {self.definition.file or 'lmforge'}",
            "shots": prepared.shots,
            "marks": "the mark that begins a document before each prompt, once" if begins else "none before a prompt",
            "code": engine.FORMAT,
        }
        return self._score(rows, key, figures)

    def _log_key(self, context: Context, prepared: Prepared, begins: bool) -> dict[str, Any]:
        parameters = context.network.parameters()
        return {
            "weights": context.weights,
            "dtype": sorted({str(each.dtype) for each in parameters}),
            "tokenizer": context.tokenizer.sha256,
            "data": prepared.data,
            "task": [self.definition.name, prepared.shots, begins],
            "code": [engine.FORMAT, engine.installed()],
        }

    def _leaked(self, context: Context, prepared: Prepared, log: ItemLog) -> set[str] | None:
        """Items that the model was trained on; None where its training text is not here."""
        if not (context.corpus_dir / "documents").is_dir():
            return None
        asked = {"leaked": str(context.corpus_dir.resolve()), "data": prepared.data}
        known = log.get(asked)
        if known is None:
            items = {document["id"]: texts_of(document) for document in prepared.documents}
            known = sorted(leaked_items(items, context.corpus_dir))
            log.add(asked, known)
        return set(known)

    def _row(
        self, sample: Document, rules: Mapping[Any, str], cut: Mapping[Any, int], leaked: set[str] | None
    ) -> dict[str, Any]:
        """One item as its line has it: the question, what was chosen, what is right, its measures, how it was read."""
        pairs = [tuple(pair) for pair in sample["arguments"]]
        scores = [float(answer[0]) for answer in sample["filtered_resps"]]
        row: dict[str, Any] = {"id": sample["doc"]["id"], "prompt": pairs[0][0]}
        if len(pairs) > 1:
            best = int(np.argmax(scores))
            row |= {"completion": pairs[best][1] if pairs[0][0] else pairs[best][0] + pairs[best][1], "chosen": best}
            row["options"] = [[*pair[-1:], round(score, 6)] for pair, score in zip(pairs, scores, strict=True)]
        else:
            row |= {"completion": "", "nats": -scores[0], "asked": pairs[0][1]}
        row["answer"] = _answer(sample["target"], pairs)
        for metric in (self.definition.metric, *self.definition.beside):
            row |= _measured(metric, sample, scores)
        row["join"] = sorted({rules.get(pair, "") for pair in pairs})
        if dropped := max((cut.get(pair, 0) for pair in pairs), default=0):
            row["tokens_cut"] = dropped
        if leaked is not None:
            row["leaked"] = row["id"] in leaked
        if self.definition.part:
            row["part"] = sample["doc"][self.definition.part]
        elif "UID" in sample["doc"]:
            row["part"] = sample["doc"]["UID"]
        return row

    def _score(self, rows: list[dict[str, Any]], key: dict[str, Any], figures: Mapping[str, Any]) -> Score:
        metric = self.definition.metric
        value, low, high = estimate(metric, rows)
        extra: dict[str, Any] = {
            "beside": {NAMES.get(name, name): estimate(name, rows)[0] for name in self.definition.beside},
            "joins": dict(Counter(rule for row in rows for rule in row["join"])),
            "tokens_cut": sum(bool(row.get("tokens_cut")) for row in rows),
            "protocol": self.definition.published,
            "harness": {
                name: {str(k): float(v) for k, v in own.items() if is_number(v)} for name, own in figures.items()
            },
        }
        if len(parts := {row["part"] for row in rows if "part" in row}) > 1:
            own = {part: [row for row in rows if row.get("part") == part] for part in sorted(parts)}
            extra["parts"] = {
                part: {"value": estimate(metric, each)[0], "items": len(each)} for part, each in own.items()
            }
        clean: dict[str, Any] = {}
        if any("leaked" in row for row in rows):
            left = [row for row in rows if not row["leaked"]]
            figure = estimate(metric, left) if left else (None, None, None)
            clean = dict(zip(("clean_value", "clean_low", "clean_high"), figure, strict=True))
            clean["leaked_share"] = 1 - len(left) / len(rows)
        ratio = (metric, "") if metric.startswith("acc") else None
        better = metric != "perplexity"
        return Score(NAMES.get(metric, metric), value, low, high, len(rows), better, key, extra, rows, ratio, clean)

    def headline(self, score: Content) -> str:
        """The figure in percent."""
        value = score.get("value")
        return f"{self.name} {100 * value:.1f}" if is_number(value) else ""

    def beside(self, score: Content) -> Mapping[str, Any]:
        """Other metrics, and the value without items that stand in training."""
        other = score.get("beside")
        clean = {"on clean items": score.get("clean_value"), "leaked share of the items": score.get("leaked_share")}
        return {**(other if isinstance(other, dict) else {}), **{k: v for k, v in clean.items() if is_number(v)}}


def scorer(model: GPT, pass_tokens: int | None) -> Continuations:
    """What scores continuations with this model; tried out once."""
    known = _SCORERS.setdefault(model, {})
    if pass_tokens not in known:
        known[pass_tokens] = Continuations(model, pass_tokens)
    return known[pass_tokens]


def texts_of(document: Document) -> list[str]:
    """Every text of a document that is long enough to tell."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            walk(list(value.values()))
        elif isinstance(value, Sequence):
            for each in value:
                walk(each)

    walk({key: value for key, value in document.items() if key not in ("id", "field", "linguistics_term", "UID")})
    return [text for text in found if len(text) > len("yes, no")]


def _answer(target: Any, pairs: Sequence[Sequence[str]]) -> str:
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(pairs) and len(pairs) > 1:
        return pairs[target][1] if len({pair[0] for pair in pairs}) == 1 else pairs[target][0]
    return str(target)


def _measured(metric: str, sample: Document, scores: Sequence[float]) -> dict[str, Any]:
    """What of an item the metric is made of: a number under its name, or the right and the given label."""
    if metric in ("pearson", "spearman"):
        weights = np.exp(np.array(scores) - max(scores))
        given = float(weights @ np.arange(len(scores)) / weights.sum())
        return {"right": float(sample["doc"]["score"]), "given": given}
    value = sample[metric]
    if metric in ("mcc", "f1"):
        return {"right": int(value[0]), "given": int(value[1])}
    return {metric: float(value)}


_PAIRED: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    "mcc": matthews, "f1": f1_of, "pearson": pearson, "spearman": spearman,
}  # fmt: skip


def estimate(metric: str, rows: Sequence[Mapping[str, Any]]) -> tuple[float, float | None, float | None]:
    """A metric over items, with its 95% interval: Wilson's for shares, bootstrapped for others."""
    if metric in _PAIRED:
        right, given = ([row[name] for row in rows] for name in ("right", "given"))
        of = _PAIRED[metric]

        def drawn(chosen: Numbers) -> float:
            return of([right[n] for n in chosen], [given[n] for n in chosen])

        low, high = bootstrap(drawn, len(rows), SEED) or (None, None)
        return of(right, given), low, high
    values = np.array([row[metric] for row in rows])
    if metric == "perplexity":
        low, high = bootstrap(lambda chosen: math.exp(-values[chosen].mean()), len(rows), SEED) or (None, None)
        return math.exp(-values.mean()), low, high
    return float(values.mean()), *wilson(int(values.sum()), len(rows))


def _registered(definition: Definition) -> type[Standard]:
    kind = type(
        definition.name.title().replace("_", ""),
        (Standard,),
        {"name": definition.name, "definition": definition, "family": FAMILIES[definition.name]}
        | {"__doc__": f"{definition.name}, of the harness."},
    )
    register(kind)
    return kind


for _definition in DEFINITIONS.values():
    _registered(_definition)
