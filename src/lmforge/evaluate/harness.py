"""Models → scores: one file a task, with interval and item count, and a fingerprint of everything that must be alike to
compare.

    tasks × models ─▶ scores/TASK.json         {task, metric, value, low, high, items, fingerprint, alike, …, models:
    {NAME: the same}}
                      scores/TASK.items.jsonl  a line an item: {model, …}
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lmforge.errors import InputError
from lmforge.evaluate.task import SEED, TASKS, Context, Score, Task
from lmforge.formats.load import load_any
from lmforge.machine import cores
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TaskSettings
from lmforge.record import atomic_directory, content_hash, hash_file, hash_json, write_atomic
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import TOKENIZER

FORMAT = 1  # of what is written
BASELINE = "baseline"  # what a score is of that no model has
FIGURES = ("metric", "value", "low", "high", "items", "fingerprint")
OPTIONAL = ("not_applicable", "clean_value", "clean_low", "clean_high", "leaked_share")


def wanted_tasks(recipe: Recipe) -> dict[str, tuple[Task[Any], TaskSettings]]:
    """The recipe's tasks with their settings, by the title that their scores have.

    Raises:
        InputError: a task of that name is not known.
    """
    return {
        settings.title: (TASKS[settings.name], TASKS[settings.name].settled(recipe, settings))
        for settings in recipe.evaluate.chosen
    }


def task_inputs(recipe: Recipe) -> dict[str, str]:
    """The hashes of files that tasks score instead of the test split, by what they are: what the stage depends on
    besides the run. "gone" where one is not there."""
    files = {settings.title: getattr(settings, "data", None) for settings in recipe.evaluate.chosen}
    return {
        f"task {title} (data)": hash_file(file) if file.is_file() else "gone"
        for title, file in files.items()
        if file is not None
    }


def benchmark_texts(recipe: Recipe) -> dict[str, list[str]]:
    """What the recipe's tasks ask, by task, for the corpus stage to keep out; tasks that score held-out text of the
    corpus itself have none."""
    asked = {title: list(task.texts(settings)) for title, (task, settings) in wanted_tasks(recipe).items()}
    return {title: texts for title, texts in asked.items() if texts}


def evaluate(
    recipe: Recipe, models: Mapping[str, Path], corpus_dir: Path, tokens_dir: Path, out: Path
) -> dict[str, Any]:
    """Run the recipe's tasks on every model and write `out`; returns `{"tasks": {name: {metric, value, low, high,
    items, fingerprint}}}`.

    The first of `models` gives the plain names; the others' scores are named `TASK.MODEL`. One model is in memory at a
    time. Baselines come last, once.

    Raises:
        InputError: a model is missing, altered or made with another tokenizer; corpus and tokens do not belong
            together.
        LmforgeError: nothing can be written. In every case `out` stays as it was.
    """
    context = Context(recipe, corpus_dir, tokens_dir, Tokenizer.load(tokens_dir / TOKENIZER))
    context.items_dir = out.with_name("items")
    wanted = wanted_tasks(recipe)
    described: dict[str, dict[str, dict[str, Any]]] = {title: {} for title in wanted}
    with threads_of(recipe):
        for name, directory in models.items():
            if not any(task.per_model for task, _ in wanted.values()):
                break
            context.model, context.weights = _load(directory, context), weights_of(directory)
            for title, (task, settings) in wanted.items():
                if task.per_model:
                    described[title][name] = _run(title, task, settings, name, context)
        context.model = None
        for title, (task, settings) in wanted.items():
            if not task.per_model:
                described[title][BASELINE] = _run(title, task, settings, BASELINE, context)
    return {"tasks": write_scores(described, {title: task for title, (task, _) in wanted.items()}, context, out)}


def write_scores(
    described: Mapping[str, Mapping[str, dict[str, Any]]], tasks: Mapping[str, Task[Any]], context: Context, out: Path
) -> dict[str, Any]:
    """Leave the scores' files in `out`; gives the key figures of each."""
    figures: dict[str, Any] = {}
    with atomic_directory(out) as folder:
        for title, scores in described.items():
            (first, score), *others = scores.items()
            content = {"task": tasks[title].name, "of": first, **score, "models": dict(others)}
            write_atomic(folder / f"{title}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            rows = [{"model": name, **row} for name, each in context.scores[title].items() for row in each.rows]
            write_atomic(folder / f"{title}.items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for name, score in scores.items():
                kept = {key: score[key] for key in (*FIGURES, *OPTIONAL) if key in score}
                if title != tasks[title].name:
                    kept["task"] = tasks[title].name
                figures[title if name == first else f"{title}.{name}"] = kept
    return figures


def _run(title: str, task: Task[Any], settings: TaskSettings, name: str, context: Context) -> dict[str, Any]:
    """Run one task on the present model, remember the score for later tasks, and describe it as its file has it."""
    log(f"evaluate: {title.replace('_', ' ')} of {name}")
    score = context.scores.setdefault(title, {})[name] = task.run(context, settings)
    if score.not_applicable:
        log(f"evaluate: {title.replace('_', ' ')} is not applicable: {score.not_applicable}")
    return describe(task, score, context)


def headlines(figures: Mapping[str, Any]) -> str:
    """What the tasks say of their scores in the terminal's table, given the figures of `evaluate`."""
    said = [
        TASKS.get(content.get("task", title), Task()).headline(content)
        for title, content in figures.items()
        if isinstance(content, Mapping) and "." not in title  # of the first model
    ]
    return "; ".join(filter(None, said)) or f"{len(figures)} scores"


def describe(task: Task[Any], score: Score, context: Context) -> dict[str, Any]:
    """A score as TASK.json has it. `comparison_key` is what must be equal for another score to compare, `fingerprint`
    its hash."""
    comparison_key = {
        **score.comparison_key,
        "task": task.name,
        "metric": score.metric,
        "format": task.format,
        "seed": SEED,
        "tokenizer": context.tokenizer.sha256 if context.model else None,
        "dtype": str(next((p.dtype for p in context.model.parameters()), None)) if context.model else None,
    }
    comparison_key = json.loads(json.dumps(comparison_key))  # as it will be read back: tuples are lists
    reason = {"not_applicable": score.not_applicable} if score.not_applicable else {}
    return {
        "metric": score.metric,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "items": score.items,
        "fingerprint": hash_json(comparison_key),
        "higher_is_better": score.higher_is_better,
        "cache_key": hash_json([comparison_key, context.weights, FORMAT]),
        **reason,
        **score.clean,
        "ratio": list(score.ratio) if score.ratio else None,
        "comparison_key": comparison_key,
        **score.extra,
    }


def _load(directory: Path, context: Context) -> GPT:
    """A model, checked against its manifest and this run's tokenizer, on the GPU where there is one."""
    loaded = load_any(directory)
    if loaded.tokenizer.sha256 != context.tokenizer.sha256:
        raise InputError(
            f"{directory}: made with another tokenizer than {context.tokens_dir / TOKENIZER}; run the train stage again"
        )
    return loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def weights_of(path: Path) -> str:
    """The hash of a model's files, whatever it is called."""
    if path.is_file():
        return hash_file(path)
    files = (file for file in sorted(path.iterdir()) if file.is_file())
    return content_hash(path) or hash_json({file.name: hash_file(file) for file in files})


@contextlib.contextmanager
def threads_of(recipe: Recipe) -> Iterator[None]:
    """As many threads as the recipe says, else OMP_NUM_THREADS, else the cores this process may use; restored
    afterwards.

    Set here because training, in the same process or not, leaves its own choice behind, and speeds are to compare.
    """
    before = torch.get_num_threads()
    stated = os.environ.get("OMP_NUM_THREADS", "")
    torch.set_num_threads(recipe.train.threads or (int(stated) if stated.isdigit() and int(stated) else cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
