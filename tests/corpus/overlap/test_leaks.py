"""Runs of characters that stand in training, against a plain search of every run."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.overlap import leaks
from lmforge.corpus.overlap.leaks import WINDOW, Windows


def runs_of(texts: list[str], window: int) -> set[str]:
    """Every run of `window` characters of some texts."""
    return {each[at : at + window] for each in texts for at in range(len(each) - window + 1)}


def plain(text: str, known: set[str], window: int) -> list[tuple[int, int]]:
    """The spans of `text` in runs of `window` characters that stand among the known ones, run by run."""
    covered = [False] * len(text)
    for at in range(len(text) - window + 1):
        if text[at : at + window] in known:
            covered[at : at + window] = [True] * window
    edges = [at for at, (one, two) in enumerate(itertools.pairwise([False, *covered, False])) if one != two]
    return list(zip(edges[::2], edges[1::2], strict=True))


def marked(windows: Windows, training: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    marks = np.zeros(windows.table.size, np.uint8)
    for each in training:
        windows.mark(each, marks)
    return marks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_spans_equal_a_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    letters = "abé日🙂 \n\ud800"

    def text(size: int) -> str:
        return "".join(rng.choice(letters) for _ in range(size))

    shared = [text(rng.randrange(1, 200)) for _ in range(3)]
    held = [text(rng.randrange(0, 150)) + rng.choice(shared) + text(rng.randrange(0, 90)) for _ in range(3)]
    training = [text(rng.randrange(0, 90)) + rng.choice([*shared, *held]) + text(30) for _ in range(3)]
    windows = Windows.of(held)
    marks = marked(windows, training)
    for number, document in enumerate(held):
        expected = plain(document, runs_of(training, WINDOW), WINDOW)
        assert windows.spans(number, marks) == expected
        covered = sum(stop - start for start, stop in expected)
        assert windows.share(number, marks) == (covered / len(document) if document else 0)


def test_of_many_runs_an_equal_share_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = random.Random(1)
    held = ["".join(rng.choices("abcdefgh ", k=4000)) for _ in range(8)]
    training = [
        held[0],
        held[1][:1000] + held[2][:3000],
        *("".join(rng.choices("abcdefgh ", k=4000)) for _ in range(3)),
    ]
    whole = Windows.of(held)
    monkeypatch.setattr(leaks, "MOST_WINDOWS", 4000)
    windows = Windows.of(held)
    assert windows.mask == 7
    assert windows.positions.size < 5000
    windows.save(tmp_path / "w.npz")
    loaded = Windows.load(tmp_path / "w.npz")
    marks = marked(loaded, training)
    for number in range(8):
        assert abs(loaded.share(number, marks) - whole.share(number, marked(whole, training))) < 0.03


def test_what_is_shorter_than_a_run_has_none() -> None:
    windows = Windows.of(["short", "", "x" * WINDOW])
    marks = marked(windows, ["short", "x" * WINDOW])
    assert [windows.spans(number, marks) for number in range(3)] == [[], [], [(0, WINDOW)]]
    assert not Windows.of([]).positions.size
