"""Charts: ticks are round and inside, lines stay inside the plot, thinning keeps the means."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.report.plots import (
    HEIGHT,
    WIDTH,
    Series,
    bar_chart,
    line_chart,
    logarithmic,
    share_bar,
    share_map,
    thin,
    ticks,
)

finite = st.floats(-1e14, 1e14)


@given(finite, st.floats(1e-6, 1e14))
def test_ticks_lie_inside_evenly(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert 1 <= len(found) <= 12
    assert all(low - slack <= value <= low + span + slack for value in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert not steps or max(steps) - min(steps) <= slack + 1e-6 * max(steps)


def test_ticks_are_round() -> None:
    assert ticks(0, 8_192_000) == [0, 2_000_000, 4_000_000, 6_000_000, 8_000_000]
    assert ticks(1.5, 2.1) == [1.6, 1.8, 2.0]
    assert ticks(3, 3) == [3]


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=600))
def test_thinning_keeps_the_mean_of_even_groups(points: list[tuple[float, float]]) -> None:
    found = thin(points, 50)
    assert len(found) == min(len(points), 50)
    if len(points) % 50 == 0:
        mean = math.fsum(y for _, y in points) / len(points)
        assert math.isclose(math.fsum(y for _, y in found) / 50, mean, rel_tol=1e-6, abs_tol=1)


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), max_size=300), st.booleans())
def test_lines_stay_inside_the_plot(points: list[tuple[float, float]], from_zero: bool) -> None:
    markup = line_chart("chart", [Series("line", sorted(points), dots=True)], "x", from_zero=from_zero)
    for path in re.findall(r' d="([^"]*)"', markup):
        for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path):
            assert -1 <= float(x) <= WIDTH + 1
            assert -1 <= float(y) <= HEIGHT + 1
    assert "nan" not in markup
    assert "inf" not in markup


def test_a_steep_start_does_not_flatten_the_rest() -> None:
    falling = [(float(step), 1.6 + 8 * math.exp(-step / 4)) for step in range(200)]
    markup = line_chart("loss", [Series("train", falling)], "steps")
    assert re.search(r"\(\d of the first points lie above\)", markup)
    heights = [float(y) for y in re.findall(r"[ML][\d.]+,([\d.]+)", markup)]
    assert max(heights) - min(heights) > 0.8 * (HEIGHT - 60)


def test_labels_are_escaped_and_described() -> None:
    markup = bar_chart("sizes <b>", [("<1", 3.0), ("2", 5.0)], "size")
    assert "<b>" not in markup
    assert "the highest 2 with 5" in markup
    assert markup.count('class="bar"') == 2


@pytest.mark.parametrize("bars", [[], [("a", 0.0)], [("a", -1.0)], [("a", 1e300)]])
def test_bars_of_nothing(bars: list[tuple[str, float]]) -> None:
    assert "nothing to show" in bar_chart("t", bars, "x")


def test_logarithmic_labels_and_bars_of_shares() -> None:
    words = logarithmic(lambda value: f"{value:.0f}")
    assert [words(power) for power in (0.0, 0.5, 3.0)] == ["1", "", "1000"]
    assert 'width="12.5"' in str(share_bar(0.125))
    assert share_bar(None) is None
    assert share_bar(1.5) is None


def test_a_map_of_shares() -> None:
    markup = share_map("<found>", ["5%", "95%"], [("1,024", [1, 0.5]), ("broken", [2, 0]), ("short", [1])], "depth")
    assert markup.count('class="cell"') == 2
    assert "&lt;found&gt;: 1,024: 100%, 50%" in markup
    assert ">50</text>" in markup
    assert "nothing to show" in share_map("none", [], [], "")
