"""Benchmarks of one model on one page: scores with intervals beside published figures, plots, right and wrong answers.

EVALUATION/scores/TASK.json, TASK.items.jsonl, published.toml ─▶ EVALUATION/benchmarks.html
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lmforge.errors import InputError
from lmforge.evaluate.compare import read_scores
from lmforge.record import write_atomic
from lmforge.report import template
from lmforge.report.markup import Html, details, figure, join, number, plain, table, tag
from lmforge.report.plots import bar_chart

PAGE = "benchmarks.html"
SHOWN = 3  # right answers, and wrong ones, of each task
_CHARACTERS = 1200
_PERCENT = ("accuracy", "F1", "correlation", "share", "exact")


@cache
def published() -> dict[str, Any]:
    """What published.toml holds."""
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text())


def write_benchmarks(evaluation: Path) -> Path:
    """Write the page of `evaluation` and return its path.

    Raises:
        InputError: no scores there.
    """
    scores = read_scores(evaluation)
    if not scores:
        raise InputError(f"{evaluation}: no scores here; run: lmforge evaluate MODEL --suite full")
    name = evaluation.resolve().name
    parts = {
        "scores": ("Scores", _table(scores)),
        "published": ("Beside published figures", beside_published(scores) or tag("p", "None of these tasks.")),
        "plots": ("Plots", _plots(scores)),
        "answers": ("Right and wrong answers", join(*_answers(evaluation, scores))),
    }
    links = (tag("a", title, href=f"#{anchor}") for anchor, (title, _) in parts.items())
    lead = f"{len(scores)} tasks, each with its 95% interval over items; nothing here was chosen by what it scored."
    header = tag("header", tag("h1", f"Benchmarks of {name}"), tag("p", lead, class_="lead"), tag("nav", *links))
    body = (template.section(anchor, title, content) for anchor, (title, content) in parts.items())
    path = evaluation / PAGE
    write_atomic(path, template.page(f"{name} · benchmarks", header, "\n", tag("main", *body), "\n"))
    return path


def _factor(score: Mapping[str, Any]) -> float:
    """Scores between 0 and 1 are shown in percent, as they are published."""
    return 100.0 if any(word in str(score.get("metric")) for word in _PERCENT) else 1.0


def _shown(score: Mapping[str, Any], key: str = "value") -> str:
    value = number(score, key)
    return figure(None if value is None else value * _factor(score), digits=3)


def _table(scores: Mapping[str, Mapping[str, Any]]) -> Html:
    rows = []
    for name, score in scores.items():
        if number(score, "value") is None:
            rows.append((plain(name), score.get("not_applicable"), "", "", "", "", ""))
            continue
        low, high = _shown(score, "low"), _shown(score, "high")
        interval = f"{low} – {high}" if number(score, "low") is not None else ""
        beside = score.get("beside")
        others = ", ".join(
            f"{key} {figure(value * _factor(score), digits=3)}"
            for key, value in (beside.items() if isinstance(beside, dict) else ())
            if isinstance(value, int | float)
        )
        clean = _shown(score, "clean_value") if number(score, "clean_value") is not None else ""
        metric = str(score.get("metric"))
        rows.append((plain(name), metric, _shown(score), interval, str(score.get("items", "")), clean, others))
    head = ("task", "metric", "value", "95% interval", "items", "on clean items", "beside it")
    return table(head, rows, (2, 3, 4, 5))


def beside_published(scores: Mapping[str, Mapping[str, Any]]) -> Html | None:
    """A row a model, a column a task that both have; None where there is none. Ours first; claims marked as claims."""
    figures, sources = published()["figures"], published()["sources"]
    there = {name: score for name, score in scores.items() if number(score, "value") is not None}
    columns = [name for name in there if any(name in each["scores"] for each in figures)]
    if not columns:
        return None
    ours = [f"{_shown(there[name])} (n = {there[name].get('items')})" for name in columns]
    rows: list[tuple[object, ...]] = [(tag("b", "this model"), *ours, "measured here")]
    for each in figures:
        if any(name in each["scores"] for name in columns):
            model = (
                join(each["model"], tag("small", "claim, unverified", class_="bad"))
                if each.get("claim")
                else each["model"]
            )
            rows.append((model, *(figure(each["scores"].get(name)) for name in columns), sources[each["source"]]))
    notes = {name: str(there[name].get("protocol") or "") for name in columns}
    said = (tag("li", f"{plain(name)}: {note}") for name, note in notes.items() if note)
    words = "Published figures are of the full sets; where ours differ:"
    head = ("model", *(plain(name) for name in columns), "source")
    return join(table(head, rows, tuple(range(1, len(columns) + 1))), tag("p", words, class_="lead"), tag("ul", *said))


def _plots(scores: Mapping[str, Mapping[str, Any]]) -> Html:
    bars = [
        (plain(name), 100 * float(score["value"]))
        for name, score in scores.items()
        if number(score, "value") is not None and _factor(score) == 100
    ]
    charts = [bar_chart("All tasks", bars, "percent")] if bars else []
    for name, score in scores.items():
        parts = score.get("parts")
        if isinstance(parts, dict) and len(parts) > 2:
            own = [
                (plain(part), 100 * float(each["value"]))
                for part, each in parts.items()
                if each.get("value") is not None
            ]
            charts.append(bar_chart(f"{plain(name)}, by part", own, "percent"))
    return tag("div", *charts, class_="plots")


def _answers(evaluation: Path, scores: Mapping[str, Mapping[str, Any]]) -> Iterator[Html]:
    """Some right and some wrong answers of each task, folded."""
    for name in scores:
        path = evaluation / "scores" / f"{name}.items.jsonl"
        if not path.is_file():
            continue
        right: list[Html] = []
        wrong: list[Html] = []
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                verdict = _is_right(row)
                place = right if verdict else wrong
                if verdict is not None and len(place) < SHOWN:
                    place.append(_answer(row))
                if len(right) == len(wrong) == SHOWN:
                    break
        if right or wrong:
            parts = (tag("h3", "right"), *right) if right else ()
            yield details(plain(name), *parts, *((tag("h3", "wrong"), *wrong) if wrong else ()))


def _is_right(row: Mapping[str, Any]) -> bool | None:
    for key in ("acc", "acc_norm", "correct", "exact", "passed"):
        if isinstance(row.get(key), int | float | bool):
            return bool(row[key])
    if "right" in row and "given" in row:
        return abs(float(row["right"]) - float(row["given"])) < 0.5
    return None


def _answer(row: Mapping[str, Any]) -> Html:
    said = str(row.get("completion") or "").strip()
    wanted = str(row.get("answer") or "").strip()
    prompt = str(row.get("prompt") or "")[-_CHARACTERS:]
    return tag("pre", prompt, " ", tag("mark", said[:_CHARACTERS]), f"\n[right: {wanted[:_CHARACTERS]}]")
