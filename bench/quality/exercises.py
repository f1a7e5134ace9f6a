"""Algebra and programs learned from generated exercises, scored on wordings that training never shows.

    python -m bench.quality.exercises WORK [--only algebra programs] [--set KEY=VALUE …]

Runs recipes/algebra.toml and recipes/programs.toml on one thread, each at most a quarter of an hour of one free core,
then asks the trained model: algebra problems of every kind from held-out templates, with and without a calculator, and
from the templates of training; every task's program from held-out phrasings and from those of training, tested in the
sandbox.
Writes bench/results/exercises.json: shares with 95% intervals, by grade and family, and processor time of the training.
What is done in WORK is not done again.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from typing import Any

import torch

from bench.harness import Results
from lmforge.corpus.sources.algebra import kinds
from lmforge.corpus.sources.algorithms import algorithms
from lmforge.evaluate.harness import weights_of
from lmforge.evaluate.task import TASKS, Context, Score
from lmforge.formats.load import load_any
from lmforge.pipeline import run_stages
from lmforge.recipe import load_recipe

RESULTS = Results("exercises")
RECIPES = Path(__file__).parents[2] / "recipes"
ASKED: dict[str, dict[str, dict[str, Any]]] = {
    "algebra": {
        "held_out_calculator": {"calculator": True},
        "trained_templates_calculator": {"calculator": True, "held_out": False},
        "held_out": {},
    },
    "programs": {
        "held_out_sorting_sequences": {"families": ("sorting", "sequences")},
        "held_out_all": {},
        "trained_phrasings": {"held_out": False},
    },
}
TASK = {"algebra": "algebra", "programs": "algorithms"}


def trained(name: str, work: Path, overrides: list[str]) -> tuple[Path, dict[str, Any]]:
    """(the run, figures of its training), trained now or before; a training that is stopped and gone on with has the
    processor time of all its parts."""
    recipe = load_recipe(RECIPES / f"{name}.toml", [f"run_dir={work / name}", *overrides])
    before, spent, kept_in = _cpu(), 0.0, work / f"{name}.cpu_seconds"
    if kept_in.exists():
        spent = float(kept_in.read_text())
    try:
        figures = run_stages(recipe, work / name, until="train")["train"]
    finally:
        spent += _cpu() - before
        work.mkdir(parents=True, exist_ok=True)
        kept_in.write_text(f"{spent}\n")
    kept = {key: figures[key] for key in ("parameters", "steps", "tokens", "valid_bits_per_byte") if key in figures}
    return work / name, {
        **kept,
        "train_seconds": figures.get("stage_seconds"),
        "cpu_seconds": round(spent, 1),
    }


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def score(run: Path, task: str, settings: dict[str, Any]) -> Score:
    """A task's score of the run's model."""
    loaded = load_any(run, which="model")
    context = Context(load_recipe(run / "recipe.toml"), run / "corpus", run / "tokens", loaded.tokenizer)
    context.model, context.weights, context.items_dir = loaded.model.eval(), weights_of(loaded.directory), run / "items"
    own = TASKS[task]
    result: Score = own.run(
        context, own.settled(context.recipe, own.settings.model_validate({"name": task, **settings}))
    )
    return result


def shown(result: Score) -> dict[str, Any]:
    """What of a score goes into the results."""
    wrong = [row for row in result.rows if not row["correct"]]
    return {
        "metric": result.metric, "value": result.value, "low": result.low, "high": result.high, "items": result.items,
        "parts": result.extra["parts"], "wrong": sorted(row["id"] for row in wrong)[:200],
    }  # fmt: skip


def main() -> None:
    """Train and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="*", choices=ASKED, default=list(ASKED))
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="keys of the recipes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        run, figures = trained(name, given.work.resolve(), given.overrides)
        counts = (
            {"kinds": len(kinds()), "templates": sum(len(each.train) for each in kinds()),
             "templates_held_out": sum(len(each.held_out) for each in kinds())}
            if name == "algebra"
            else {"tasks": len(algorithms()), "phrasings": sum(len(each.train) for each in algorithms().values()),
                  "phrasings_held_out": sum(len(each.held_out) for each in algorithms().values())}
        )  # fmt: skip
        RESULTS.publish({f"{name}/training": {**figures, **counts}}, threads=1)
        for label, settings in ASKED[name].items():
            RESULTS.publish({f"{name}/scores/{label}": shown(score(run, TASK[name], settings))}, threads=1)


if __name__ == "__main__":
    main()
