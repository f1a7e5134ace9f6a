"""The scores of two runs side by side, or the reason why that would be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lmforge.errors import InputError
from lmforge.evaluate.task import SEED, TASKS, Task
from lmforge.intervals import bootstrap, bootstrap_difference, difference, paired_p

MANIFEST = "manifest.json"


def read_scores(run: Path) -> dict[str, dict[str, Any]]:
    """`{task: its file's content}` of a run, further models' scores as `TASK.MODEL`.

    Raises:
        InputError: no scores there, or a file that is not one.
    """
    scores: dict[str, dict[str, Any]] = {}
    for path in sorted((run / "scores").glob("*.json")):
        if path.name == MANIFEST:
            continue
        try:
            content = json.loads(path.read_text())
            of_task = {
                path.stem: content,
                **{f"{path.stem}.{model}": score for model, score in content["models"].items()},
            }
            for score in of_task.values():
                _ = score["value"], score["low"], score["high"], score["comparison_key"].items(), score["ratio"]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{path}: not a score that lmforge wrote ({error!r}); run: lmforge evaluate RECIPE"
            ) from error
        scores |= of_task
    if not scores:
        raise InputError(f"{run}: no scores here; run: lmforge evaluate RECIPE")
    return scores


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Both runs' values of every task both have: `{"tasks": {name: {metric, first, second, difference, low, high, …}},
    "left_out": {}}`.

    `difference` is second − first, `low` and `high` its 95% interval: by a bootstrap in pairs where the value is a
    ratio of sums over items (the items are the same, or the runs would be refused), or a statistic of them that its
    task knows, else from the two intervals. `p_value`, where items pair up and each counts alike: of "neither is
    better" (`intervals.paired_p`). `differs` says whether 0 is outside the interval, `better` which run is ahead if so.
    A speed measured on another machine is left out, with the reason in `left_out`.

    Raises:
        InputError: a task was scored in another way in the two (names the task and what differs), or they have none in
            common.
    """
    a, b = read_scores(first), read_scores(second)
    tasks: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in (name for name in a if name in b):
        unlike = differing(a[name]["comparison_key"], b[name]["comparison_key"])
        if unlike == ["machine"]:
            parts = differing(a[name]["comparison_key"]["machine"], b[name]["comparison_key"]["machine"])
            left_out[name] = f"measured on another machine or with other settings ({', '.join(parts)})"
        elif unlike:
            shown = "; ".join(
                f"{part}: {_short(a[name]['comparison_key'].get(part))} and "
                f"{_short(b[name]['comparison_key'].get(part))}"
                for part in unlike
            )
            raise InputError(
                f"{name}: not scored alike in {first} and {second}: {', '.join(unlike)} differ ({shown}); "
                "evaluate both with the same texts, tokenizer and evaluate settings"
            )
        elif a[name]["value"] is None or b[name]["value"] is None:
            left_out[name] = str(a[name].get("not_applicable") or b[name].get("not_applicable") or "not scored")
        else:
            tasks[name] = _row(name, first, second, a[name], b[name])
    if not tasks:
        why = (
            "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            or "evaluate both with the same evaluate.tasks"
        )
        raise InputError(f"{first} and {second}: no score in common that compares; {why}")
    return {"first": str(first), "second": str(second), "tasks": tasks, "left_out": left_out}


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys on which two dictionaries differ, in order."""
    return [key for key in sorted({*a, *b}) if (key in a) != (key in b) or a.get(key) != b.get(key)]


def _short(part: Any) -> str:
    text = part if isinstance(part, str) else json.dumps(part)
    return text if len(text) <= 60 else text[:12] + "…" if " " not in text else text[:57] + "…"


def _row(name: str, first: Path, second: Path, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    interval, p_value = _paired(name, first, second, a)
    paired = interval is not None
    if interval is None and None not in (a["low"], a["high"], b["low"], b["high"]):
        interval = difference((a["value"], a["low"], a["high"]), (b["value"], b["low"], b["high"]))
    low, high = interval or (None, None)
    differs = low is not None and high is not None and not low <= 0 <= high
    gain = (b["value"] - a["value"]) * (1 if a.get("higher_is_better") else -1)
    return {
        "metric": a["metric"],
        "first": a["value"],
        "second": b["value"],
        "difference": b["value"] - a["value"],
        "low": low,
        "high": high,
        "paired": paired,
        "p_value": p_value,
        "differs": differs,
        "better": ("second" if gain > 0 else "first") if differs else None,
        "items": a["items"],
        "fingerprint": a["fingerprint"],
    }


def _paired(
    name: str, first: Path, second: Path, score: dict[str, Any]
) -> tuple[tuple[float, float] | None, float | None]:
    """(the interval of the difference over the items of both, p of no difference); None where their rows do not pair
    up."""
    a, b = _items(first, name), _items(second, name)
    if not a or [row.get("id") for row in a] != [row.get("id") for row in b]:
        return None, None
    if score["ratio"] is None:
        task: Task[Any] = TASKS.get(str(score.get("task", name)), Task())
        one_of, other_of = task.statistic(a), task.statistic(b)
        if one_of is None or other_of is None:
            return None, None
        return bootstrap(lambda rows: other_of(rows) - one_of(rows), len(a), SEED), None
    above, below = score["ratio"]
    try:
        one, other = (np.array([float(row[above]) for row in rows]) for rows in (a, b))
        sizes, same = (np.array([float(row[below]) if below else 1.0 for row in rows]) for rows in (a, b))
    except (KeyError, TypeError, ValueError):
        return None, None
    if not np.array_equal(sizes, same):
        return None, None
    return bootstrap_difference(one, other, sizes, SEED), None if below else paired_p(one, other, SEED)


def _items(run: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one score; `name` is TASK or TASK.MODEL."""
    task, _, model = name.partition(".")
    try:
        with (run / "scores" / f"{task}.items.jsonl").open() as file:
            rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    except (OSError, ValueError):
        return []
    wanted = model or (rows[0].get("model") if rows else None)
    return [row for row in rows if row.get("model") == wanted]
