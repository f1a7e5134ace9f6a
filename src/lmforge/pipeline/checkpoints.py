"""Before training: whose checkpoints lie there? The same recipe's are gone on from, all or in part; others are kept
aside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmforge.aside import asides, bring_back, drop, next_aside, set_aside, size_in_words
from lmforge.pipeline.course import Course, common_start
from lmforge.pipeline.keys import CHOICE, LENGTH, differences, in_words, is_in
from lmforge.pipeline.state import State
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.record import content_hash, write_atomic
from lmforge.tokens.shards import Shards
from lmforge.train.checkpoint import KEY

MADE_FROM = "made_from.json"  # of the checkpoints: the stage's part of the recipe and its inputs
COPIED = (KEY, MADE_FROM, "metrics.jsonl", "ensemble.json", "excluded.json")


def keep_or_set_aside(recipe: Recipe, run: Path, state: State, fresh: bool) -> None:
    """Leave in `train/` what the training goes on from, and nothing else; mark whose it is."""
    train = run / "train"
    if fresh:
        drop(train)
    elif not _goes_on(recipe, run, state):
        if _has_work(train):
            set_aside(train, f"made with another recipe: {_why(train, state)}")
        elif train.exists():
            shutil.rmtree(train)
        bring_back(train, lambda kept: _read(kept / KEY) == state.key)
    content = {"recipe": state.part, "inputs": state.inputs}
    write_atomic(train / MADE_FROM, json.dumps(content, indent=1, default=str) + "\n")
    write_atomic(train / KEY, state.key)


def _goes_on(recipe: Recipe, run: Path, state: State) -> bool:
    """Whether the training goes on from what is in `train/`; what it cannot go on from is set aside."""
    train = run / "train"
    if not train.exists() or _read(train / KEY) == state.key:
        return train.exists()
    changes = _changes(train, state)
    if changes is None:
        return False
    of_the_course = {name: pair for name, pair in changes.items() if not is_in(CHOICE, name)}
    if not of_the_course:
        log(f"train: {in_words(changes)}: the training is the same; its model is chosen again")
        return True
    if not all(is_in(LENGTH, name) for name in of_the_course):
        return False
    # the very training that is wanted may have been set aside
    if any(_read(kept / KEY) == state.key for kept in asides(train)):
        return False
    return _goes_on_longer(recipe, run, of_the_course)


def _goes_on_longer(recipe: Recipe, run: Path, changes: Mapping[str, tuple[Any, Any]]) -> bool:
    train, tokens = run / "train", Shards.open(run / "tokens", "train").tokens
    old, new = Course(_with_length(recipe, changes), tokens), Course(recipe, tokens)
    steps = _usable(train / "checkpoints")
    start, why = common_start(old, new, steps)
    if start is None:
        if steps:
            log(
                f"train: {in_words(changes)}: cannot go on from a checkpoint, since {why}"
                + ('; with train.schedule = "wsd" and train.warmup stated it could' if "rate" in why else "")
            )
        return False
    log(f"train: {in_words(changes)}: goes on from step {start}, up to which both trainings are the same ({why})")
    _set_aside_after(train, start)
    return True


def _with_length(recipe: Recipe, changes: Mapping[str, tuple[Any, Any]]) -> Recipe:
    """The recipe with the old values of the changed keys."""
    for section in LENGTH:
        old = {name.partition(".")[2]: pair[0] for name, pair in changes.items() if name.startswith(f"{section}.")}
        if old:
            recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=old)})
    return recipe


def _usable(checkpoints: Path) -> list[int]:
    """Steps of whole checkpoints whose best predecessor is there too, for the choice at the end."""
    whole = {_step(path) for path in checkpoints.glob("step-*") if content_hash(path)}
    best = {step: json.loads((checkpoints / f"step-{step:08d}" / "state.json").read_text()) for step in whole}
    return sorted(step for step in whole if best[step].get("best_step") in (None, *whole))


def _set_aside_after(train: Path, start: int) -> None:
    """Checkpoints and weights of later steps go aside, with copies of what tells of them."""
    later = [
        path
        for folder in ("checkpoints", "snapshots")
        for path in sorted((train / folder).glob("step-*"))
        if _step(path) > start
    ]
    if not later:
        return
    kept = next_aside(train)
    for path in later:
        target = kept / path.relative_to(train)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    for name in COPIED:
        if (train / name).is_file():
            shutil.copy2(train / name, kept / name)
    # the part before is in train/ only: this folder alone is not a training to be brought back
    (kept / KEY).unlink(missing_ok=True)
    log(f"train: what was made after step {start} is kept in {kept} ({size_in_words(kept)})")


def _changes(train: Path, state: State) -> dict[str, tuple[Any, Any]] | None:
    """How the checkpoints' recipe and inputs differ from the wanted ones; None where it is not known, or where what a
    training writes is of another format."""
    try:
        made_from = json.loads((train / MADE_FROM).read_text())
        old = {**made_from["recipe"], "inputs": made_from["inputs"]}
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    new = json.loads(json.dumps({**state.part, "inputs": state.inputs}, default=str))
    return differences(old, new) or None


def _why(train: Path, state: State) -> str:
    changes = _changes(train, state)
    return in_words(changes) if changes else "another version of lmforge began it"


def _has_work(train: Path) -> bool:
    return any(path for folder in ("checkpoints", "snapshots") for path in (train / folder).glob("step-*"))


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _read(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def is_trained(run: Path, entry: Mapping[str, Any] | None) -> bool:
    """Whether the training that lies in a run has ended, by its record's entry."""
    return entry is not None and _read(run / "train" / KEY) == entry["key"]
