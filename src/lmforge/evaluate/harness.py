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
from lmforge.evaluate.answers import answers
from lmforge.evaluate.baseline import kneser_ney
from lmforge.evaluate.code import completions_parse
from lmforge.evaluate.language import bits_per_byte
from lmforge.evaluate.passkey import passage, passkey
from lmforge.evaluate.speed import generation_speed
from lmforge.evaluate.task import SEED, Context, Score, Task
from lmforge.formats.load import load_any
from lmforge.model.gpt import GPT
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.record import atomic_directory, hash_json, write_atomic
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import TOKENIZER

TASKS = {
    task.name: task
    for task in (
        Task("bits_per_byte", bits_per_byte),
        Task("completions_parse", completions_parse),
        Task("generation_speed", generation_speed),
        Task("kneser_ney", kneser_ney, per_model=False),
        Task("answers", answers),
        Task("passkey", passkey, texts=lambda recipe: [passage()]),
    )
}
FIGURES = ("metric", "value", "low", "high", "items", "fingerprint")


def benchmark_texts(recipe: Recipe) -> dict[str, list[str]]:
    """What the recipe's tasks ask, by task, for the corpus stage to keep out; tasks that score held-out text of the
    corpus itself have none."""
    asked = {name: TASKS[name].texts for name in dict.fromkeys(recipe.evaluate.tasks)}
    return {name: list(texts(recipe)) for name, texts in asked.items() if texts is not None}


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
    wanted = [TASKS[name] for name in dict.fromkeys(recipe.evaluate.tasks)]
    described: dict[str, dict[str, dict[str, Any]]] = {task.name: {} for task in wanted}
    with _threads(recipe):
        for name, directory in models.items():
            if not any(task.per_model for task in wanted):
                break
            context.model = _load(directory, context)
            for task in wanted:
                if task.per_model:
                    described[task.name][name] = _run(task, name, context)
        context.model = None
        for task in wanted:
            if not task.per_model:
                described[task.name]["baseline"] = _run(task, "baseline", context)
    figures: dict[str, Any] = {}
    with atomic_directory(out) as folder:
        for task in wanted:
            (first, score), *others = described[task.name].items()
            content = {"task": task.name, **score, "models": dict(others)}
            write_atomic(folder / f"{task.name}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            rows = [{"model": name, **row} for name, found in context.scores[task.name].items() for row in found.rows]
            write_atomic(folder / f"{task.name}.items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            for name, score in described[task.name].items():
                kept = {key: score[key] for key in (*FIGURES, "not_applicable") if key in score}
                figures[task.name if name == first else f"{task.name}.{name}"] = kept
    return {"tasks": figures}


def _run(task: Task, name: str, context: Context) -> dict[str, Any]:
    """Run one task on the present model, remember the score for later tasks, and describe it as its file has it."""
    log(f"evaluate: {task.name.replace('_', ' ')} of {name}")
    score = context.scores.setdefault(task.name, {})[name] = task.run(context)
    if score.not_applicable:
        log(f"evaluate: {task.name.replace('_', ' ')} is not applicable: {score.not_applicable}")
    return describe(task, score, context)


def describe(task: Task, score: Score, context: Context) -> dict[str, Any]:
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
        **reason,
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


@contextlib.contextmanager
def _threads(recipe: Recipe) -> Iterator[None]:
    """As many threads as the recipe says, else OMP_NUM_THREADS, else the cores this process may use; restored
    afterwards.

    Set here because training, in the same process or not, leaves its own choice behind, and speeds are to compare.
    """
    before = torch.get_num_threads()
    stated = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(recipe.train.threads or (int(stated) if stated.isdigit() and int(stated) else cores))
    try:
        yield
    finally:
        torch.set_num_threads(before)
