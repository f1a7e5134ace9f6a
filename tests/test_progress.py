"""Progress: plain lines when stderr is no terminal; durations in words."""

from __future__ import annotations

import pytest

from lmforge import progress
from lmforge.progress import Bar, format_duration, track


@pytest.mark.parametrize(
    ("seconds", "words"), [(1.234, "1.2 s"), (12.3, "12 s"), (75, "1 min 15 s"), (7300, "2 h 2 min")]
)
def test_in_words(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_plain_lines_say_share_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Bar("train", 100, "tok", done=20) as bar:
        bar.step(30, "loss 2.5")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("train: 50%, ")
    assert "tok/s" in err
    assert "left" in err
    assert err.rstrip().endswith("loss 2.5")


def test_track_passes_everything_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "count")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
