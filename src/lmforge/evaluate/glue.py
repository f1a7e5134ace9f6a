"""GLUE fine-tuned: nine tasks and the diagnostic, official metrics, the average, files to submit.

    pack ─▶ texts with a cue ─▶ `train.classifier` (every weight or LoRA; a head, or words as labels)
         ─▶ dev: metrics with intervals; test, where the pack has it: OUT/submission/CoLA.tsv …

Wang et al. 2019, "GLUE": sections 3 (metrics) and 4 (average: of tasks, each the mean of its metrics).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.evaluate.joins import puts_begin
from lmforge.evaluate.measures import f1_of, matthews, pearson, spearman
from lmforge.evaluate.packs import Row, find_pack, open_pack
from lmforge.evaluate.task import SEED
from lmforge.formats.loaded import LoadedModel
from lmforge.intervals import Numbers, bootstrap, wilson
from lmforge.record import write_atomic
from lmforge.tokens.bpe import Tokenizer
from lmforge.train.classifier import Classifier, Fit, Judged, fit_classifier

ENTAILED, NLI = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """A task: the texts' fields, the cue after them, the labels' words and official names, and where the label stands.
    `files`: the split each file of a submission is of. `learns_from`: the task whose model answers a diagnostic."""

    pack: str
    fields: tuple[str, ...]
    cue: str
    words: tuple[str, ...]
    metrics: tuple[str, ...]
    files: Mapping[str, str]
    names: tuple[str, ...] = ()
    label: str = "label"
    degree: bool = False
    dev: tuple[str, ...] = ("dev",)
    learns_from: str | None = None

    def text(self, row: Row) -> str:
        """What the model reads."""
        return "\n".join(str(row[field]).strip() for field in self.fields) + f"\n{self.cue}:"

    def label_of(self, row: Row) -> float | None:
        """The label's number, or the degree; None where the row has none."""
        given = row.get(self.label)
        if given is None or given == -1:
            return None
        return float(self.names.index(given)) if isinstance(given, str) else float(given)


PAIR = ("sentence1", "sentence2")
YES_NO = (" yes", " no")
TASKS: dict[str, GlueTask] = {
    "cola": GlueTask("glue/cola", ("sentence",), "Acceptable", (" no", " yes"), ("matthews",), {"CoLA": "test"}),
    "sst2": GlueTask(
        "glue/sst2", ("sentence",), "Sentiment", (" negative", " positive"), ("accuracy",), {"SST-2": "test"}
    ),
    "mrpc": GlueTask("glue/mrpc", PAIR, "Same meaning", (" no", " yes"), ("f1", "accuracy"), {"MRPC": "test"}),
    "stsb": GlueTask(
        "glue/stsb",
        PAIR,
        "Similarity from 0 to 5",
        (" 0", " 1", " 2", " 3", " 4", " 5"),
        ("pearson", "spearman"),
        {"STS-B": "test"},
        label="score",
        degree=True,
    ),
    "qqp": GlueTask(
        "glue/qqp",
        ("question1", "question2"),
        "Same question",
        (" no", " yes"),
        ("f1", "accuracy"),
        {"QQP": "test"},
        label="is_duplicate",
    ),
    "mnli": GlueTask(
        "glue/mnli",
        ("premise", "hypothesis"),
        "True, neither or false",
        (" true", " neither", " false"),
        ("accuracy",),
        {"MNLI-m": "test", "MNLI-mm": "test_mismatched"},
        NLI,
        dev=("dev", "dev_mismatched"),
    ),
    "qnli": GlueTask(
        "glue/qnli", ("question", "sentence"), "Answered", YES_NO, ("accuracy",), {"QNLI": "test"}, ENTAILED
    ),
    "rte": GlueTask("glue/rte", PAIR, "True", YES_NO, ("accuracy",), {"RTE": "test"}, ENTAILED),
    "wnli": GlueTask("glue/wnli", PAIR, "True", (" no", " yes"), ("accuracy",), {"WNLI": "test"}),
    "ax": GlueTask(
        "glue/ax",
        ("premise", "hypothesis"),
        "True, neither or false",
        (" true", " neither", " false"),
        ("matthews",),
        {"AX": "test"},
        NLI,
        dev=("test",),
        learns_from="mnli",
    ),
}
_MEASURES: dict[str, Any] = {"matthews": matthews, "f1": f1_of, "pearson": pearson, "spearman": spearman}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A task's figures on its dev splits and what was answered on every split: {split: [label or degree, …]}."""

    figures: dict[str, Any]
    answers: dict[str, list[float]]


def word_tokens(task: GlueTask, tokenizer: Tokenizer) -> tuple[list[int], tuple[int, ...]]:
    """(the tokens that every label's word begins with after the cue, such as a blank; the one by which each goes on).

    Raises:
        InputError: two of them go on alike, so that a head is needed.
    """
    cue = tokenizer.encode(f"{task.cue}:")
    rests = [tokenizer.encode(f"{task.cue}:{word}")[len(cue) :] for word in task.words]
    size = next((n for n in range(min(map(len, rests))) if len({rest[n] for rest in rests}) > 1), None)
    if size is None or len({rest[size] for rest in rests}) < len(rests):
        raise InputError(
            f"{task.pack}: under this tokenizer two of the words {', '.join(task.words)} begin alike; use --labels head"
        )
    return rests[0][:size], tuple(rest[size] for rest in rests)


def examples_of(
    task: GlueTask, rows: Sequence[Row], tokenizer: Tokenizer, context: int, ending: Sequence[int] = ()
) -> list[Judged]:
    """Rows as the model reads them, `ending` after each; a text longer than the context loses its beginning."""
    begin = [tokenizer.begin] if puts_begin(tokenizer) else []
    encoded = tokenizer.encode_batch([task.text(row) for row in rows])
    return [
        Judged([*begin, *[*tokens, *ending][-(context - len(begin)) :]], task.label_of(row) or 0.0)
        for tokens, row in zip(encoded, rows, strict=True)
    ]


def tune(name: str, loaded: LoadedModel, fit: Fit, labels: str, limit: int | None = None) -> tuple[Classifier, Tuned]:
    """Fine-tune a model, in place, on a task and answer all of its splits. `labels`: "head" or "words"; of `fit` only
    what is not the task's. `limit`: most training examples.

    Raises:
        InputError: no such task or pack; a diagnostic by itself, or words that do not tell labels apart.
    """
    if name not in TASKS:
        raise InputError(f"glue: no task {name!r}; tasks are {', '.join(TASKS)}")
    task = TASKS[name]
    if task.learns_from:
        raise InputError(f"glue: {name} has no training examples; it is answered along with {task.learns_from}")
    context, tokenizer = loaded.model.config.context, loaded.tokenizer
    rows = [row for row in open_pack(task.pack, "train") if task.label_of(row) is not None][:limit]
    ending, words = word_tokens(task, tokenizer) if labels == "words" else ([], None)
    outputs = 1 if task.degree and words is None else len(task.words)
    fit = dataclasses.replace(fit, outputs=outputs, degree=task.degree, words=words)
    classifier, trained = fit_classifier(loaded.model, examples_of(task, rows, tokenizer, context, ending), fit)
    figures: dict[str, Any] = {"task": name, "labels": labels, "training": {**trained, "rows": len(rows)}}
    answers: dict[str, list[float]] = {}
    own = [(split, task) for split in dict.fromkeys((*task.dev, *task.files.values()))]
    own += [(f"{other}/test", each) for other, each in TASKS.items() if each.learns_from == name]
    for split, asked in own:
        there = _rows_of(asked, split.rpartition("/")[2])
        if there is None:
            continue
        judged = classifier.judged(examples_of(asked, there, tokenizer, context, ending), task.degree)
        answers[split] = [_answer(each, task, words is not None) for each in judged]
        right = [asked.label_of(row) for row in there]
        if all(each is not None for each in right):
            figures[split] = measured(asked, [float(each or 0) for each in right], answers[split])
    return classifier, Tuned(figures, answers)


def _rows_of(task: GlueTask, split: str) -> list[Row] | None:
    """A split's rows; None where the pack, or this copy of it, has none."""
    try:
        files = find_pack(task.pack).files
        return open_pack(task.pack, split) if split in files or split == "dev" else None
    except InputError:
        return None


def _answer(numbers: Sequence[float], task: GlueTask, words: bool) -> float:
    if not task.degree:
        return float(max(range(len(numbers)), key=numbers.__getitem__))
    if not words:
        return min(5.0, max(0.0, numbers[0]))
    return math.fsum(math.exp(each) * degree for degree, each in enumerate(numbers))


def measured(task: GlueTask, right: Sequence[float], given: Sequence[float]) -> dict[str, Any]:
    """The task's official metrics, each with its 95% interval, the number of items, and what the most frequent label
    gets."""
    result: dict[str, Any] = {"items": len(right)}
    interval: tuple[float | None, float | None]
    for metric in task.metrics:
        if metric == "accuracy":
            hits = sum(a == b for a, b in zip(right, given, strict=True))
            value, interval = hits / len(right), wilson(hits, len(right))
        else:
            of = _MEASURES[metric]

            def drawn(chosen: Numbers, of: Any = of) -> float:
                return float(of([right[n] for n in chosen], [given[n] for n in chosen]))

            value, interval = of(right, given), bootstrap(drawn, len(right), SEED) or (None, None)
        result[metric] = {"value": float(value), "low": interval[0], "high": interval[1]}
    if not task.degree:
        result["majority"] = max(right.count(label) for label in {*right}) / len(right)
    return result


def average(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """GLUE's score over the tasks that there are (named): the mean of tasks, each the mean of its metrics, in percent;
    the diagnostic does not count."""
    scores = {}
    for name, own in figures.items():
        parts = [own[split] for split in TASKS[name].dev if split in own]
        values = [part[metric]["value"] for part in parts for metric in TASKS[name].metrics]
        if values and not TASKS[name].learns_from:
            scores[name] = 100 * sum(values) / len(values)
    missing = [name for name, task in TASKS.items() if name not in scores and not task.learns_from]
    return {"average": sum(scores.values()) / max(1, len(scores)), "tasks": scores, "missing": missing}


def write_answers(name: str, tuned: Tuned, out: Path) -> list[Path]:
    """The files that gluebenchmark.com takes (`submission/TASK.tsv`: index, prediction) of every test split that was
    answered, and the same of the dev splits (`dev/`), for the official script to score."""
    written = []
    for task_name, task in TASKS.items():
        if task_name != name and task.learns_from != name:
            continue
        prefix = f"{task_name}/" if task_name != name else ""
        for title, split in task.files.items():
            if prefix + split in tuned.answers:
                written.append(_tsv(out / "submission" / f"{title}.tsv", task, tuned.answers[prefix + split]))
        for split in task.dev:
            if not prefix and split in tuned.answers:
                title = next(iter(task.files)) + ("" if split == "dev" else f"-{split}")
                written.append(_tsv(out / "dev" / f"{title}.tsv", task, tuned.answers[split]))
    return written


def _tsv(path: Path, task: GlueTask, answers: Sequence[float]) -> Path:
    shown = (
        f"{each:.4f}" if task.degree else task.names[int(each)] if task.names else str(int(each)) for each in answers
    )
    write_atomic(path, "index\tprediction\n" + "".join(f"{number}\t{each}\n" for number, each in enumerate(shown)))
    return path


def write_figures(out: Path, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """OUT/glue.json: every task's figures so far and the average; tasks that were tuned before stay."""
    path = out / "glue.json"
    known: dict[str, Any] = json.loads(path.read_text())["tasks"] if path.exists() else {}
    tasks = {**known, **figures}
    content = {"tasks": tasks, "glue": average(tasks)}
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return content
