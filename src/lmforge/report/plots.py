"""Line and bar charts and maps as small inline SVG.

Text stays text, colours follow the page's theme, and a title says in words what the chart shows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from lmforge.report.markup import Html, figure, join, tag

WIDTH, HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 44
_MOST_POINTS = 240
_LARGEST = 1e15  # numbers beyond this are a broken file's, and differences of them lose their meaning
_HIDDEN = 0.03  # share of the points, the highest ones, that may lie above the plot so that the rest can be told apart

Point = tuple[float, float]
Words = Callable[[float], str]


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: points (x, y) in order of x. `dots` marks each point (for few); `flat` is a dashed level to compare
    with."""

    name: str
    points: Sequence[Point]
    dots: bool = False
    flat: bool = False


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers within [low, high], steps of 1, 2 or 5 times a power of ten, about `wanted` of them."""
    span = high - low
    if not (math.isfinite(span) and span > abs(high) * 1e-12):
        return [low]
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12 - math.floor(math.log10(step))) for k in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most `most` points: the means of equally many neighbours each."""
    if len(points) <= most:
        return list(points)
    cuts = [len(points) * i // most for i in range(most + 1)]
    groups = [points[a:b] for a, b in itertools.pairwise(cuts)]
    return [
        (math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group)) for group in groups
    ]


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    x_words: Words = figure,
    y_words: Words = figure,
    from_zero: bool = False,
) -> Html:
    """A figure with the lines of `series` (at most 4 are told apart), a legend where there is more than one."""
    shown = [
        dataclasses.replace(line, points=[p for p in line.points if max(map(abs, p)) < _LARGEST]) for line in series
    ]
    thinned = [dataclasses.replace(line, points=thin(line.points)) for line in shown if line.points]
    if not thinned or not any(not line.flat for line in thinned):
        return tag("figure", tag("figcaption", title), tag("p", "no points yet", class_="missing"))
    xs = [x for line in thinned if not line.flat for x, _ in line.points]
    left, right = min(xs), max(xs)
    low, high, hidden = _range([y for line in thinned for _, y in line.points], from_zero)
    frame = _Frame(left, right if right > left else left + max(1.0, abs(left)), low, high)
    marks = [_line(frame, line, number, y_words) for number, line in enumerate(thinned)]
    ends = (f"{line.name}: from {y_words(line.points[0][1])} to {y_words(line.points[-1][1])}." for line in thinned)
    words = f"{title}. {' '.join(ends)}"
    above = tag("small", f" ({hidden} of the first points lie above)") if hidden else None
    return tag(
        "figure",
        tag("figcaption", title, above),
        _legend(thinned),
        _svg(words, frame, x_label, x_words, y_words, marks),
    )


def bar_chart(title: str, bars: Sequence[tuple[str, float]], x_label: str, unit: str = "") -> Html:
    """Upright bars, one a label, from zero; each says its value, in `unit`, on hovering."""
    bars = [(label, value) for label, value in bars if 0 <= value < _LARGEST]
    if not bars or max(value for _, value in bars) <= 0:
        return tag("figure", tag("figcaption", title), tag("p", "nothing to show", class_="missing"))
    frame = _Frame(0, len(bars), 0, max(value for _, value in bars) * 1.05)
    every = math.ceil(len(bars) / 9)
    marks = []
    for number, (label, value) in enumerate(bars):
        x, y, floor = frame.x(number + 0.08), frame.y(value), frame.y(0)
        marks.append(
            tag(
                "rect",
                tag("title", f"{label}: {value:,.6g} {unit}"),
                class_="bar",
                x=_px(x),
                y=_px(y),
                width=_px(frame.x(number + 0.92) - x),
                height=_px(floor - y),
                rx="1.5",
            )
        )
        if number % every == 0:
            marks.append(
                tag("text", label, x=_px(frame.x(number + 0.5)), y=_px(HEIGHT - _BOTTOM + 16), text_anchor="middle")
            )
    largest = max(bars, key=lambda bar: bar[1])
    words = f"{title}: {len(bars)} bars, the highest {largest[0]} with {largest[1]:,.6g} {unit}."
    return tag("figure", tag("figcaption", title), _svg(words, frame, x_label, None, _plain, marks))


def share_map(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]], x_label: str) -> Html:
    """Shares (0 to 1) over two things: a cell for each row and column, the fuller its colour the larger, with its
    percentage."""
    rows = [
        (label, shares)
        for label, shares in rows
        if len(shares) == len(columns) and all(0 <= share <= 1 for share in shares)
    ]
    if not rows or not columns:
        return tag("figure", tag("figcaption", title), tag("p", "nothing to show", class_="missing"))
    height, width = 30, (WIDTH - _LEFT - _RIGHT) / len(columns)
    floor, marks = _TOP + height * len(rows), []
    for line, (label, shares) in enumerate(rows):
        top, middle = _TOP + height * line, _TOP + height * (line + 0.5)
        marks.append(tag("text", label, x=_LEFT - 7, y=_px(middle), dy="0.32em", text_anchor="end"))
        for place, (column, share) in enumerate(zip(columns, shares, strict=True)):
            left = _LEFT + width * place
            marks.append(
                tag(
                    "rect",
                    tag("title", f"{label}, {column}: {100 * share:.1f}%"),
                    class_="cell",
                    x=_px(left + 1),
                    y=_px(top + 1),
                    width=_px(width - 2),
                    height=_px(height - 2),
                    rx="2",
                    fill_opacity=f"{0.06 + 0.7 * share:.3f}",
                )
            )
            marks.append(
                tag(
                    "text",
                    f"{100 * share:.0f}",
                    x=_px(left + width / 2),
                    y=_px(middle),
                    dy="0.32em",
                    text_anchor="middle",
                    class_="in",
                )
            )
    for place, column in enumerate(columns):
        marks.append(tag("text", column, x=_px(_LEFT + width * (place + 0.5)), y=_px(floor + 16), text_anchor="middle"))
    marks.append(
        tag("text", x_label, x=(_LEFT + WIDTH - _RIGHT) / 2, y=_px(floor + 37), text_anchor="middle", class_="label")
    )
    words = f"{title}: " + "; ".join(
        f"{label}: {', '.join(f'{100 * share:.0f}%' for share in shares)}" for label, shares in rows
    )
    return tag(
        "figure",
        tag("figcaption", title),
        tag("svg", tag("title", words), *marks, viewBox=f"0 0 {WIDTH} {floor + _BOTTOM}", role="img"),
    )


def share_bar(share: float | None) -> Html | None:
    """A level bar as wide as the share (0 to 1) of its cell, to be set beside the figure."""
    if share is None or not 0 <= share <= 1:
        return None
    return tag(
        "svg",
        tag("rect", class_="bar", width=_px(100 * share), height="10", rx="1"),
        viewBox="0 0 100 10",
        class_="share",
        preserveAspectRatio="none",
    )


def logarithmic(words: Words) -> Words:
    """For axes that show 10^x: labels whole powers by `words`, and nothing between."""
    return lambda power: words(10**power) if abs(power - round(power)) < 1e-6 else ""


def _plain(value: float) -> str:
    return f"{value:,.6g}"


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Values to pixels."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - self.low) / (self.high - self.low))


def _px(value: float) -> str:
    return f"{min(max(value, -9e3), 9e3):.1f}".removesuffix(".0")


def _range(ys: Sequence[float], from_zero: bool) -> tuple[float, float, int]:
    """(low, high, points left above): the highest few are left out where they would flatten all others."""
    ordered = sorted(ys)
    low, high = (min(0.0, ordered[0]) if from_zero else ordered[0]), ordered[-1]
    most = ordered[math.ceil((len(ordered) - 1) * (1 - _HIDDEN))]
    if high - low > 1.5 * (most - low) > 0:
        high = most
    margin = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-9)
    return (low if from_zero else low - margin), high + margin, sum(y > high + margin for y in ordered)


def _line(frame: _Frame, line: Series, number: int, words: Words) -> Html:
    points = [(frame.left, line.points[0][1]), (frame.right, line.points[0][1])] if line.flat else line.points
    shown = tag("path", d=_path(frame, points), class_=f"line s{number % 4}{' flat' if line.flat else ''}")
    if not line.dots:
        return shown
    return join(
        shown,
        *(
            tag(
                "circle",
                tag("title", f"{line.name} {words(y)}"),
                cx=_px(frame.x(x)),
                cy=_px(frame.y(y)),
                r="3",
                class_=f"dot s{number % 4}",
            )
            for x, y in points
            if frame.low <= y <= frame.high
        ),
    )


def _path(frame: _Frame, points: Sequence[Point]) -> str:
    """The line through `points` in SVG's path language, cut where it leaves the plot at the top."""
    parts: list[str] = []
    before: Point | None = None
    for x, y in points:
        if before is not None and (y > frame.high) != (before[1] > frame.high):
            share = (frame.high - before[1]) / (y - before[1])
            crossing = before[0] + share * (x - before[0]), frame.high
            parts.append(f"{'M' if y <= frame.high else 'L'}{_px(frame.x(crossing[0]))},{_px(frame.y(crossing[1]))}")
        if y <= frame.high:
            parts.append(f"{'L' if parts and before is not None else 'M'}{_px(frame.x(x))},{_px(frame.y(y))}")
        before = x, y
    return " ".join(parts)


def _legend(series: Sequence[Series]) -> Html | None:
    if len(series) < 2:
        return None
    return tag(
        "p",
        *(
            tag("span", tag("i", class_=f"s{number % 4}{' flat' if line.flat else ''}"), line.name)
            for number, line in enumerate(series)
        ),
        class_="legend",
    )


def _svg(words: str, frame: _Frame, x_label: str, x_words: Words | None, y_words: Words, marks: Sequence[Html]) -> Html:
    floor, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    axes = []
    for value in ticks(frame.low, frame.high):
        y = _px(frame.y(value))
        axes += [
            tag("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"),
            tag("text", y_words(value), x=_LEFT - 7, y=y, dy="0.32em", text_anchor="end"),
        ]
    for value in ticks(frame.left, frame.right) if x_words else ():
        axes.append(
            tag("text", x_words(value) if x_words else "", x=_px(frame.x(value)), y=floor + 16, text_anchor="middle")
        )
    axes.append(tag("line", x1=_LEFT, x2=right, y1=floor, y2=floor, class_="axis"))
    axes.append(tag("text", x_label, x=(_LEFT + right) / 2, y=HEIGHT - 7, text_anchor="middle", class_="label"))
    return tag("svg", tag("title", words), *axes, *marks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img")
