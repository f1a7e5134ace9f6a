"""The part of the page that tells of scores: a table with intervals, and what the model wrote."""

from __future__ import annotations

from typing import Any

from lmforge.report.loaded import Run
from lmforge.report.markup import (
    MISSING,
    Html,
    abbreviated,
    at,
    count,
    details,
    entries,
    figure,
    join,
    mapping,
    not_run,
    number,
    percent,
    table,
    tag,
)
from lmforge.report.plots import share_map

_SHOWN_ITEMS = 6
_SHOWN_CHARACTERS = 2000
_MORE = ("exact", "macro_f1", "matthews")  # other measures of a fine-tuned model's answers
_PROMPTS, _COMPLETIONS = ("prompt", "context", "input"), ("completion", "text", "output", "generated", "written")


def score(run: Run, task: str) -> float | None:
    """The (uncompressed) model's value of a task."""
    rows = score_rows(run.tasks().get(task, {}))
    return number(rows[0][1], "value") if rows else None


def score_rows(task: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(model's name, its score) in a task's file: the first model's own where there is one, then those of `models`."""
    own = {} if set(task) == {"models"} else task
    return [(name, row) for name, row in (("model", own), *mapping(task, "models").items()) if mapping(row)]


def scores(run: Run) -> Html:
    """Every task's score with interval and number of items; then samples."""
    tasks = run.tasks()
    if not tasks:
        return not_run("evaluate")
    rows = []
    for name, task in tasks.items():
        for model, row in score_rows(task):
            low, high = number(row, "low"), number(row, "high")
            interval = f"{figure(low)} – {figure(high)}" if low is not None and high is not None else MISSING
            values = (row.get("metric") or MISSING, figure(row, "value"), interval, count(row, "items"))
            whose = "baseline" if name == "kneser_ney" else model
            rows.append((name.replace("_", " "), whose, *values, _beside(row), abbreviated(row.get("fingerprint"))))
    head = ("task", "of", "metric", "value", "95% interval", "items", "beside it", "fingerprint")
    against = (at(row, "words") for row in mapping(tasks.get("kneser_ney"), "against").values())
    told = [tag("li", words) for words in against if isinstance(words, str)]
    words = "Scores compare only where fingerprints are equal: same texts, same prompts, same counting."
    return join(
        table(head, rows, (3, 4, 5)), tag("ul", *told) if told else None, tag("p", words, class_="lead"),
        _passkeys(mapping(tasks.get("passkey"))), *(_samples(run, name) for name in tasks),
    )  # fmt: skip


def _passkeys(task: dict[str, Any]) -> Html | None:
    """Where keys were found, one map a model: depth × length."""
    maps = []
    for model, row in score_rows(task):
        lines = zip(_list(row.get("lengths")), _list(row.get("accuracy")), strict=False)
        table = [(count(length), [number(share) for share in _list(shares)]) for length, shares in lines]
        shown = [(label, [share for share in shares if share is not None]) for label, shares in table if shares]
        if shown:
            depths = [percent(number(depth)).replace(".0%", "%") for depth in _list(row.get("depths"))]
            maps.append(
                share_map(
                    f"Keys found, {model}: % by length (tokens) and depth",
                    depths,
                    shown,
                    "depth of the key; 0% is the beginning",
                )
            )
    return tag("div", *maps, class_="plots") if maps else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _beside(row: dict[str, Any]) -> str:
    """Why there is no value, or what the task sets beside it: what is easy to get, and what could be had."""
    if row.get("not_applicable"):
        return f"not applicable: {row['not_applicable']}"
    more = {name: row[name] for name in _MORE if number(row, name) is not None}
    return ", ".join(
        f"{name.replace('_', ' ')} {figure(value, digits=3)}"
        for name, value in (more | mapping(row, "baselines")).items()
    )


def _samples(run: Run, task: str) -> Html | None:
    """What a model wrote for a task, folded; None where the task keeps no such text."""
    given = run.tasks()[task].get("samples")
    texts = [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
    found = entries(given) or [{"completion": text} for text in texts] or run.items(task, _SHOWN_ITEMS)
    shown = [piece for piece in map(_item, found[:_SHOWN_ITEMS]) if piece is not None]
    title = f"{task.replace('_', ' ')}: what was written, first {len(shown)} items"
    return details(title, *shown, opened="complet" in task) if shown else None


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
