"""A run's training as it goes on, in the terminal: curves of dots, and what is left.

train/metrics.jsonl ─▶ bits per byte (training and validation) and tokens a second, by step ─▶ eight dots a
character
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lmforge.progress import format_duration
from lmforge.report.loaded import LoadedRun
from lmforge.report.markup import count, number, size
from lmforge.report.plots import Point, thin

WIDTH, HEIGHT, SMALL = 72, 12, 4  # characters of a plot
EVERY = 2.0  # seconds between two looks
# of a Braille character (U+2800 on), from its top, left and right
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def watch(directory: Path, done: Callable[[], bool], every: float = EVERY) -> None:
    """Draw the run until `done()`; where the output is no terminal, once."""
    if not sys.stdout.isatty():
        print(picture(directory))
        return
    with Live(console=Console(), auto_refresh=False, screen=False) as live:
        while True:
            live.update(Text(picture(directory)), refresh=True)
            if done():
                return
            time.sleep(every)  # between two looks at a file that another process writes


def picture(directory: Path) -> str:
    """The run as it is now, in lines."""
    run = LoadedRun(directory)
    lines = run.metrics()
    steps = [line for line in lines if number(line, "bits_per_byte") is not None]
    if not steps:
        return f"{run.name}: no training step yet"
    valid = [
        (step, value)
        for line in lines
        if (value := number(line, "valid_bits_per_byte")) is not None and (step := number(line, "step"))
    ]
    points = [
        (step, value)
        for line in steps
        if (value := number(line, "bits_per_byte")) is not None and (step := number(line, "step"))
    ]
    speed = [
        (step, value)
        for line in steps
        if (value := number(line, "tokens_per_second")) is not None and (step := number(line, "step"))
    ]
    last, best = steps[-1], min((value for _, value in valid), default=None)
    share = number(last, "utilization")
    facts = [
        f"step {count(last, 'step')}",
        f"{count(last, 'tokens')} tokens",
        format_duration(number(last, "seconds") or 0),
        f"{count(last, 'tokens_per_second')} tokens/s",
        *([f"{100 * share:.0f}% of the matrix peak"] if share is not None else []),
        *([size(last, "memory_bytes")] if number(last, "memory_bytes") is not None else []),
    ]
    skipped = sum("skipped" in line for line in lines)
    checked = f", validation {valid[-1][1]:.4f} (best {best:.4f})" if best is not None else ""
    return "\n".join([
        f"{run.name}: {', '.join(facts)}" + (f", {skipped} steps skipped" if skipped else ""),
        f"bits per byte {number(last, 'bits_per_byte') or 0:.4f}{checked}",
        *plot(_body(points), [valid], WIDTH, HEIGHT), "tokens/s", *plot(speed, [], WIDTH, SMALL),
    ])  # fmt: skip


def _body(points: Sequence[Point]) -> list[Point]:
    """Without the first tenth where there are many, whose fall would flatten the rest."""
    return list(points[len(points) // 10 :] if len(points) >= 50 else points)


def plot(line: Sequence[Point], marks: Sequence[Sequence[Point]], width: int, height: int) -> list[str]:
    """A line of points (x, y), and `marks` as crosses on it, in `height` rows of `width` characters, the scale at the
    left and below."""
    line = thin([point for point in line if all(map(math.isfinite, point))], 2 * width)
    if not line:
        return []
    first = line[0][0]
    crosses = [point for each in marks for point in each if point[0] >= first and math.isfinite(point[1])]
    every = [*line, *crosses]
    low, high, last = min(y for _, y in every), max(y for _, y in every), max(x for x, _ in every)
    span, length = (high - low) or 1.0, (last - first) or 1.0

    def place(x: float, y: float) -> tuple[int, int]:
        """The dot, from the top left."""
        return round((x - first) / length * (2 * width - 1)), round((high - y) / span * (4 * height - 1))

    cells = [[0] * width for _ in range(height)]
    before = place(*line[0])
    for point in line:
        column, row = place(*point)
        # the stretch from the dot before, without gaps
        for step in range(max(1, abs(row - before[1]), abs(column - before[0])) + 1):
            part = step / max(1, abs(row - before[1]), abs(column - before[0]))
            x, y = round(before[0] + part * (column - before[0])), round(before[1] + part * (row - before[1]))
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
        before = column, row
    rows = [[chr(0x2800 + cell) for cell in each] for each in cells]
    for point in crosses:
        column, row = place(*point)
        rows[row // 4][column // 2] = "×"
    labels = {0: _short(high), height - 1: _short(low)}
    margin = max(map(len, labels.values()))
    drawn = [f"{labels.get(number, ''):>{margin}} ┤{''.join(each)}" for number, each in enumerate(rows)]
    left, right = _short(first), _short(last)
    return [*drawn, f"{'':>{margin}} └{left}{'─' * max(1, width - len(left) - len(right))}{right}"]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
