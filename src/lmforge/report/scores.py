"""The part of the page that tells of scores: a table with intervals, and what the model wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmforge.evaluate.task import TASKS, Card, Task
from lmforge.report.benchmarks import beside_published
from lmforge.report.loaded import LoadedRun
from lmforge.report.markup import (
    MISSING,
    Html,
    abbreviated,
    count,
    details,
    entries,
    figure,
    join,
    mapping,
    not_run,
    number,
    plain,
    table,
    tag,
)
from lmforge.report.plots import share_map

_SHOWN_ITEMS = 6
_SHOWN_CHARACTERS = 2000
_PROMPTS, _COMPLETIONS = ("prompt", "context", "input"), ("completion", "text", "output", "generated", "written")


def task_of(title: str, content: Mapping[str, Any]) -> Task[Any]:
    """The task that a score's file is of; one that is not installed here shows itself as any other."""
    task: Task[Any] = TASKS.get(str(content.get("task", title)), Task())
    return task


def cards(run: LoadedRun) -> list[Card]:
    """The figures that tasks put at the top of the page."""
    own = {title: own_score(content) for title, content in run.tasks().items()}
    made = (task_of(title, content).card(own[title], own) for title, content in run.tasks().items())
    return [card for card in made if card is not None]


def levels(run: LoadedRun) -> list[tuple[str, float]]:
    """Names and values, in bits per byte, that the training's curves are seen against."""
    levels = (task_of(title, content).level(own_score(content)) for title, content in run.tasks().items())
    return [level for level in levels if level is not None]


def entropy(run: LoadedRun) -> tuple[float | None, object]:
    """What the model makes of the held-out text's entropy, in bits per byte, and of how many bytes."""
    for title, content in run.tasks().items():
        own = own_score(content)
        bits = task_of(title, content).entropy(own)
        if bits is not None:
            return bits, own.get("bytes")
    return None, None


def own_score(task: dict[str, Any]) -> dict[str, Any]:
    """The (uncompressed) model's score in a task's file."""
    rows = score_rows(task)
    return rows[0][1] if rows else {}


def score_rows(task: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(model's name, its score) in a task's file: the first model's own where there is one, then those of `models`."""
    own = {} if set(task) == {"models"} else task
    first = str(task.get("of", "model"))
    return [(name, row) for name, row in ((first, own), *mapping(task, "models").items()) if mapping(row)]


def scores(run: LoadedRun) -> Html:
    """Every task's score with interval and number of items; then samples."""
    tasks = run.tasks()
    if not tasks:
        return not_run("evaluate")
    rows = []
    told: list[str] = []
    maps: list[Html] = []
    for title, content in tasks.items():
        task = task_of(title, content)
        told += task.sentences(content)
        for model, row in score_rows(content):
            low, high = number(row, "low"), number(row, "high")
            interval = f"{figure(low)} – {figure(high)}" if low is not None and high is not None else MISSING
            values = (row.get("metric") or MISSING, figure(row, "value"), interval, count(row, "items"))
            whose = model if task.per_model else "baseline"
            rows.append((plain(title), whose, *values, _beside(task, row), abbreviated(row.get("fingerprint"))))
            maps += [share_map(each.title, each.columns, each.rows, each.note) for each in task.maps(model, row)]
    head = ("task", "of", "metric", "value", "95% interval", "items", "beside it", "fingerprint")
    words = "Scores compare only where fingerprints are equal: same texts, same prompts, same counting."
    return join(
        table(head, rows, (3, 4, 5)),
        tag("ul", *(tag("li", sentence) for sentence in told)) if told else None,
        tag("p", words, class_="lead"),
        beside_published({title: own_score(content) for title, content in tasks.items()}),
        tag("div", *maps, class_="plots") if maps else None,
        *(_samples(run, title) for title in tasks),
    )


def _beside(task: Task[Any], row: dict[str, Any]) -> str:
    """Why there is no value, or what the task sets beside it: what is easy to get, and what could be had."""
    if row.get("not_applicable"):
        return f"not applicable: {row['not_applicable']}"
    return ", ".join(f"{plain(name)} {figure(value, digits=3)}" for name, value in task.beside(row).items())


def _samples(run: LoadedRun, task: str) -> Html | None:
    """What a model wrote for a task, folded; None where the task keeps no such text."""
    content = run.tasks()[task]
    given = content.get("samples")
    texts = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
    items = entries(given) or [{"completion": text} for text in texts] or run.items(task, _SHOWN_ITEMS)
    shown = [piece for piece in map(_item, items[:_SHOWN_ITEMS]) if piece is not None]
    title = f"{plain(task)}: what was written, first {len(shown)} items"
    return details(title, *shown, opened=task_of(task, content).opened) if shown else None


def _item(item: dict[str, Any]) -> Html | None:
    """One item: its short facts on a line, then prompt and completion, the completion set off by colour."""
    prompt = next((item[key] for key in _PROMPTS if isinstance(item.get(key), str)), "")
    completion = next((item[key] for key in _COMPLETIONS if isinstance(item.get(key), str)), None)
    if completion is None:
        return None
    facts = [
        f"{key.replace('_', ' ')}: {figure(value) if isinstance(value, float) else value}"
        for key, value in item.items()
        if key not in _PROMPTS + _COMPLETIONS and isinstance(value, str | bool | int | float) and len(str(value)) <= 80
    ]
    text = tag("pre", prompt[-_SHOWN_CHARACTERS:], tag("mark", completion[:_SHOWN_CHARACTERS]))
    return join(tag("small", " · ".join(facts)) if facts else None, text)
