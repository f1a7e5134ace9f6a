"""The parts of the page that tell of tokens, training, compression, recipe and lineage."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from lmforge.progress import format_duration
from lmforge.report.loaded import LoadedRun
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
    metric,
    not_run,
    number,
    ratio,
    size,
    table,
    tag,
)
from lmforge.report.plots import Point, Series, line_chart
from lmforge.report.scores import levels

_MOST_ROWS = 40


def _words(name: str) -> str:
    return name.replace("_", " ")


def tokens(run: LoadedRun) -> Html:
    """Vocabulary, tokens per split, bytes per token."""
    figures = {**run.figures("tokens"), **mapping(run.json("tokens", "index.json"))}
    if not figures:
        return not_run("tokens")
    splits = mapping(figures.pop("splits", None))
    rows = [(name, count(row, "tokens"), count(row, "documents"), size(row, "bytes")) for name, row in splits.items()]
    told = {f"{what}_{split}" for what in ("tokens", "documents", "bytes") for split in splits}
    others = {name: value for name, value in figures.items() if name not in told}
    return tag(
        "div",
        tag("div", table(("figure", "value"), [(_words(name), shown) for name, shown in _flat(others)], (1,))),
        tag("div", table(("split", "tokens", "documents", "text"), rows, (1, 2, 3))) if rows else None,
        class_="plots",
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Html]]:
    """Nested figures as (path, value); long lists by their length, hashes abbreviated."""
    for name, value in list(values.items())[:_MOST_ROWS]:
        if isinstance(value, dict) and prefix.count("·") < 3:
            yield from _flat(value, f"{prefix}{name} · ")
        elif isinstance(value, list | dict):
            yield prefix + name, join(f"{len(value):,} entries")
        elif number(value) is not None:
            yield prefix + name, join(count(value) if isinstance(value, int) else figure(value))
        else:
            text = str(value)
            is_digest = len(text) >= 32 and all(c in "0123456789abcdef" for c in text)
            yield prefix + name, abbreviated(text) if is_digest else join(text[:200])


def training(run: LoadedRun) -> Html:
    """Loss against tokens and time, learning rate, speed, gradient norm."""
    metrics, figures = run.metrics(), run.figures("train")
    steps = [line for line in metrics if number(line, "step") is not None and number(line, "bits_per_byte") is not None]
    if not steps:
        return not_run("train")
    clock = {line["step"]: line.get("seconds") for line in steps}
    valid = [{**line, "seconds": clock.get(line["step"])} for line in metrics
             if number(line, "step") is not None and "valid_bits_per_byte" in line]  # fmt: skip
    longest = max(number(line, "seconds") or 0.0 for line in steps)
    unit, scale = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    level = [Series(name, [(0, value)], flat=True) for name, value in levels(run)]

    def loss(title: str, x: str, label: str, scale: int, words: Callable[[float], str]) -> Html:
        learned = Series("training", _points(steps, x, "bits_per_byte", scale))
        checked = Series("validation", _points(valid, x, "valid_bits_per_byte", scale), dots=True)
        return line_chart(title, [learned, checked, *level], label, words, short)

    best, last, way = number(figures, "best_step"), steps[-1], figures.get("way")
    words = f"{count(last, 'step')} steps, {count(last, 'tokens')} tokens, {format_duration(longest)}"
    if best is not None:
        words += (
            f"; best on validation text {figure(figures, 'valid_bits_per_byte')} bits per byte, at step {count(best)}"
        )
    trained, all_of_them = number(figures, "trained_parameters"), number(figures, "parameters")
    if trained is not None and all_of_them is not None and trained < all_of_them:
        words += (
            f"; {count(figures, 'trained_parameters')} parameters were learned beside {count(figures, 'parameters')} "
            "of its base"
        )
    charts = (
        loss("Bits per byte, by tokens", "tokens", "tokens", 1, metric),
        loss("Bits per byte, by time", "seconds", unit, scale, short),
        _by_tokens("Learning rate", _points(steps, "tokens", "lr")),
        _by_tokens("Tokens per second", _speed(steps)),
        _by_tokens("Gradient norm before clipping", _points(steps, "tokens", "grad_norm")),
        *(
            _by_tokens(title, points)
            for title, key in _MORE
            if (points := _points(steps, "tokens", key)) and any(y for _, y in points)
        ),
    )
    ran = tag("p", "Run with ", way, ".", class_="lead") if way else None
    return join(tag("p", f"{words}."), ran, tag("div", *charts, class_="plots"), _ensembles(figures))


def _ensembles(figures: dict[str, Any]) -> Html | None:
    """Every model that the run's weights could give, the best first, and which was taken."""
    candidates = entries(figures.get("candidates"))
    if len(candidates) < 2:
        return None
    single = min(
        (
            value
            for row in candidates
            if len(row.get("members") or ()) == 1 and (value := number(row, "bits_per_byte")) is not None
        ),
        default=None,
    )
    rows = []
    for row in candidates:
        against, taken = ratio(row.get("bits_per_byte"), single), row.get("name") == figures.get("chosen")
        made_from = ", ".join(map(str, row.get("members") or ())) or "every step near the end"
        rows.append(
            (
                tag("b", row.get("name"), " (taken)") if taken else row.get("name"),
                made_from,
                count(row, "networks"),
                figure(row, "bits_per_byte", digits=5),
                f"{100 * (against - 1):+.2f}%" if against is not None else MISSING,
            )
        )
    head = ("model", "weights after steps", "networks", "bits per byte, validation", "against the best single")
    return join(tag("h3", "Models that the run's weights give"), table(head, rows, (2, 3, 4)))


_MORE = (  # curves of what only some runs note
    ("Utilisation: share of the matrix peak", "utilization"),
    ("Memory, bytes", "memory_bytes"),
    ("Seconds of each step waiting for data", "data_wait"),
    ("Loss scale of float16", "loss_scale"),
)


def _by_tokens(title: str, points: list[Point]) -> Html:
    return line_chart(title, [Series(title, points)], "tokens", metric, short, from_zero=True)


def short(value: float) -> str:
    """A number for an axis."""
    return f"{value:.3g}" if abs(value) < 1000 else metric(value)


def _points(lines: Iterable[dict[str, Any]], x: str, y: str, scale: int = 1) -> list[Point]:
    pairs = ((number(line, x), number(line, y)) for line in lines)
    return sorted((a / scale, b) for a, b in pairs if a is not None and b is not None)


def _speed(steps: list[dict[str, Any]]) -> list[Point]:
    """Tokens per second between lines about a hundredth of the run apart (the journal's own figure is a mean since the
    start)."""
    marks = _points(steps, "tokens", "seconds")
    marks = marks[:: max(1, len(marks) // 100)]
    return [(b[0], (b[0] - a[0]) / (b[1] - a[1])) for a, b in itertools.pairwise(marks) if b[1] - a[1] > 1e-9]


# title, key, words, whether more is better
_COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[object], str], bool], ...] = (
    ("file", ("file_bytes",), size, False),
    ("resident memory", ("resident_bytes",), size, False),
    ("peak memory", ("peak_memory", "peak_bytes"), size, False),
    ("MACs per token", ("macs_per_token",), metric, False),
    ("decode tokens/s, batch 1", ("decode_tokens_per_second", "1"), count, True),
    ("batch 8", ("decode_tokens_per_second", "8"), count, True),
    ("batch 16", ("decode_tokens_per_second", "16"), count, True),
    ("batch 64", ("decode_tokens_per_second", "64"), count, True),
    ("prefill tokens/s", ("prefill_tokens_per_second",), count, True),
    ("bits per byte", ("bits_per_byte",), figure, False),
)


def compression(run: LoadedRun) -> Html:
    """The table before and after each step, and what it says in words."""
    steps = run.compression_steps()
    if not steps:
        return not_run("compress")
    columns = [column for column in _COLUMNS if any(number(step, *column[1]) is not None for step in steps)]
    rows: list[list[object]] = []
    for step in steps:
        cells = (
            _beside(at(step, *path), None if step is steps[0] else at(steps[0], *path), words, more)
            for _, path, words, more in columns
        )
        rows.append([step.get("name") or MISSING, *cells])
    head = ["model", *(title for title, *_ in columns)]
    verdicts = at(run.json("compressed", "report.json"), "verdicts") or run.figures("compress").get("verdicts")
    told = [tag("li", text) for text in verdicts if isinstance(text, str)] if isinstance(verdicts, list) else []
    return join(table(head, rows, range(1, len(head))), tag("ul", *told) if told else None)


def _beside(value: object, first: object, words: Callable[[object], str], more_is_better: bool) -> Html:
    """A figure and, under it, its ratio to the uncompressed model's (`first`), coloured where it is better or worse."""
    against = ratio(value, first)
    if against is None:
        return join(words(value))
    verdict = None if abs(against - 1) < 5e-4 else "good" if (against > 1) == more_is_better else "bad"
    if against == 1:
        return join(words(value), tag("small", "the same"))
    shown = f"{against:.4f}" if abs(against - 1) < 0.02 else figure(against, digits=3)
    return join(words(value), tag("small", f"{shown}×", class_=verdict))


def recipe(run: LoadedRun) -> Html:
    """The resolved recipe, folded."""
    text = run.text("recipe.toml")
    return details("recipe.toml, every value resolved", tag("pre", text)) if text else not_run("corpus")


def lineage(run: LoadedRun) -> Html:
    """What each stage made from what, with which code, on which machine."""
    stages = {name: mapping(entry) for name, entry in run.record.items() if name != "report" and mapping(entry)}
    if not stages:
        return not_run("corpus")
    rows = []
    machines: dict[str, list[str]] = {}
    for name, entry in stages.items():
        digests = (abbreviated(entry.get("key")), _hashes(entry.get("inputs")), _hashes(entry.get("outputs")))
        rows.append((name, *digests, entry.get("code"), entry.get("seed"), entry.get("finished")))
        facts = (f"{_words(key)} {value}" for key, value in mapping(entry, "machine").items() if value is not None)
        machines.setdefault(", ".join(facts) or "not recorded", []).append(name)
    return join(
        tag(
            "p",
            "A stage's key is the hash of its part of the recipe and of its inputs. Hashes are SHA-256, whole on "
            "hovering.",
        ),
        table(("stage", "key", "made from", "makes", "code", "seed", "finished"), rows),
        *(tag("p", tag("b", "machine"), f" ({', '.join(names)}): {machine}") for machine, names in machines.items()),
    )


def _hashes(values: object) -> Html:
    pairs = list(mapping(values).items())[:_MOST_ROWS]
    return join(*(tag("div", name, " ", abbreviated(digest)) for name, digest in pairs)) if pairs else join(MISSING)
