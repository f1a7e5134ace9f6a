"""Any model → the scores of a family of benchmarks, or of all: no recipe, no corpus, no connection.

    lmforge evaluate MODEL --suite glue ─▶ OUT/scores/TASK.json, TASK.items.jsonl, and OUT/items: answers as they come

A suite holds the tasks whose `family` has its name, "full" those of every family. What a suite cannot ask here (a pack
that is not on this machine) is a score that says so, with the command that makes the pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lmforge.errors import InputError
from lmforge.evaluate.harness import describe, threads_of, weights_of, write_scores
from lmforge.evaluate.offline import offline
from lmforge.evaluate.task import TASKS, Context, Task, not_applicable
from lmforge.formats.load import Which, load_any
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.recipe.evaluate import TASK_SETTINGS, TaskSettings

FULL = "full"


def suites() -> dict[str, list[str]]:
    """Names of tasks by suite, "full" first."""
    families: dict[str, list[str]] = {}
    for name in TASKS:
        if family := TASKS[name].family:
            families.setdefault(family, []).append(name)
    return {FULL: [name for names in families.values() for name in names], **families}


def tasks_of(
    suite: str, limit: int | None = None, shots: int | None = None
) -> dict[str, tuple[Task[Any], TaskSettings]]:
    """The tasks of a suite, or of several and single tasks with commas between, each with its settings.

    Raises:
        InputError: no such suite or task.
    """
    known = suites()
    names: list[str] = []
    for word in suite.split(","):
        if word not in known and word not in TASKS:
            raise InputError(f"--suite {word}: no such suite or task; suites are {', '.join(known)}")
        names += known.get(word, [word])
    chosen = {}
    for name in dict.fromkeys(names):
        fields = TASK_SETTINGS[name].model_fields
        given = {"limit": limit, "shots": shots if "shots" in fields else None}
        settings = TASK_SETTINGS[name].model_validate(
            {"name": name, **{key: value for key, value in given.items() if value is not None}}
        )
        assert isinstance(settings, TaskSettings)
        chosen[name] = (TASKS[name], TASKS[name].settled(Recipe(), settings))
    return chosen


def evaluate_model(
    path: Path,
    suite: str,
    out: Path,
    limit: int | None = None,
    shots: int | None = None,
    which: Which = "auto",
    run: Path | None = None,
) -> dict[str, Any]:
    """Score a model by a suite and write `out`; as `harness.evaluate`. `run`: whose corpus the model was trained on,
    where that is here.

    Raises:
        InputError: no model, suite or task there. In every case `out/scores` stays as it was.
    """
    chosen = tasks_of(suite, limit, shots)
    loaded = load_any(path, which=which)
    nowhere = out / "no-corpus"
    corpus, tokens = (run / "corpus", run / "tokens") if run else (nowhere, nowhere)
    context = Context(Recipe(), corpus, tokens, loaded.tokenizer)
    context.model = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    context.weights, context.items_dir = weights_of(loaded.directory), out / "items"
    described: dict[str, dict[str, dict[str, Any]]] = {}
    with threads_of(Recipe()), offline():
        for name, (task, settings) in chosen.items():
            log(f"evaluate: {name.replace('_', ' ')} of {loaded.name}")
            try:
                score = task.run(context, settings)
            except InputError as error:
                if name in suite.split(","):
                    raise
                log(f"evaluate: {name} is left out: {error}")
                score = not_applicable(name, str(error), {})
            context.scores[name] = {"model": score}
            described[name] = {"model": describe(task, score, context)}
    return {
        "tasks": write_scores(described, {name: task for name, (task, _) in chosen.items()}, context, out / "scores")
    }
