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


def test_no_time_left_is_told_before_a_rate_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Bar("merges", 4096, "merge", done=96) as bar:
        bar.step(0)  # reading the texts; no merge yet
        assert bar.seconds_left is None
        assert capsys.readouterr().err == "merges: 2%\n"
        bar.started -= 10
        bar.step(1000, "")
        assert bar.seconds_left == pytest.approx(30, rel=0.01)
        assert capsys.readouterr().err == "merges: 27%, 100 merge/s, 30 s left\n"
        bar.step(5000)  # more than was expected
        assert bar.seconds_left == 0


def test_without_a_total_no_time_left_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Bar("read", None, "document") as bar:
        bar.step(0)
        bar.step(7)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "read: 0 document"
    assert lines[1].startswith("read: 7 document, ")
    assert "left" not in lines[1]


def test_track_passes_everything_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "count")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_what_every_rank_comes_to_is_said_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK", rank)
        progress.log_once("once")
    assert capsys.readouterr().err == "once\n"
