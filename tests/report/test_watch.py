"""Curves in the terminal: every point on the plot, the scale told, one picture where there is no terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.report.watch import picture, plot, watch


def dots(rows: list[str]) -> int:
    return sum(
        bin(ord(character) - 0x2800).count("1")
        for row in rows
        for character in row
        if 0x2800 <= ord(character) < 0x2900
    )


def test_a_falling_line_falls() -> None:
    rows = plot([(x, 10 - x) for x in range(10)], [], 20, 5)
    assert len(rows) == 6
    assert rows[0].startswith("10 ┤")
    assert rows[4].strip().startswith("1 ┤")
    first = [min(i for i, c in enumerate(row.split("┤")[1]) if c != chr(0x2800)) for row in rows[:5]]
    assert first == sorted(first)
    assert rows[5].strip().startswith("└0")
    assert rows[5].endswith("9")


def test_crosses_mark_validation() -> None:
    rows = plot([(1, 1.0), (9, 2.0)], [[(5, 1.5), (0, 9.0)]], 21, 5)
    assert "".join(rows).count("×") == 1
    assert rows[2].split("┤")[1][10] == "×"


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e6, 1e6) | st.just(math.nan)), max_size=40),
    st.integers(2, 30),
    st.integers(1, 9),
)
def test_any_points_fit(points: list[tuple[int, float]], width: int, height: int) -> None:
    line = sorted(dict(points).items())
    rows = plot(line, [], width, height)
    if any(math.isfinite(y) for _, y in line):
        assert len(rows) == height + 1
        assert {len(row.split("┤")[1]) for row in rows[:-1]} == {width}
        assert dots(rows) >= 1
    else:
        assert rows == []


def test_a_picture_of_a_run(tmp_path: Path) -> None:
    assert "no training step yet" in picture(tmp_path)
    (tmp_path / "train").mkdir()
    lines = [
        {
            "step": n,
            "tokens": 100 * n,
            "seconds": n / 2,
            "bits_per_byte": 2 + 1 / n,
            "tokens_per_second": 200,
            "utilization": 0.5,
            "memory_bytes": 3e8,
        }
        for n in range(1, 101)
    ]
    lines += [{"step": 100, "valid_bits_per_byte": 2.1}, {"step": 101, "skipped": "x"}]
    (tmp_path / "train" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = picture(tmp_path)
    assert "step 100, 10,000 tokens, 50 s, 200 tokens/s, 50% of the matrix peak, 300 MB, 1 steps skipped" in text
    assert "bits per byte 2.0100, validation 2.1000 (best 2.1000)" in text
    assert text.count("┤") == 16
    assert "×" in text


def test_without_a_terminal_it_is_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch(tmp_path, lambda: pytest.fail("looked again"))
    assert capsys.readouterr().out.count("no training step yet") == 1


def test_on_a_terminal_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    looks = iter([False, False, True])
    watch(tmp_path, lambda: next(looks), every=0)
    assert next(looks, None) is None
    assert "no training step yet" in capsys.readouterr().out
