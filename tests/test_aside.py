"""What another recipe would throw away: kept, named, brought back, and removed only when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.aside import asides, bring_back, drop, set_aside, size_in_words


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "key").write_text(text)
    return path


def test_aside_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = tmp_path / "train"
    for text in ("first", "second", "third"):
        set_aside(folder(train, text), "made with another recipe")
    assert [path.name for path in asides(train)] == ["train.stale-1", "train.stale-2", "train.stale-3"]
    assert "kept in" in capsys.readouterr().err
    assert not bring_back(train, lambda kept: (kept / "key").read_text() == "fourth")
    assert bring_back(train, lambda kept: (kept / "key").read_text() == "second")
    assert (train / "key").read_text() == "second"
    assert [path.name for path in asides(train)] == ["train.stale-1", "train.stale-3"]
    assert set_aside(train, "again").name == "train.stale-4"


def test_drop_names_what_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop(tmp_path / "train")
    assert capsys.readouterr().err == ""
    set_aside(folder(tmp_path / "train", "x"), "y")
    folder(tmp_path / "train", "z")
    folder(tmp_path / "training", "kept")
    capsys.readouterr()
    drop(tmp_path / "train")
    assert "train.stale-1: removed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["training"]


def test_sizes_in_words(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1500)
    assert size_in_words(tmp_path) == "1.5 kB"
    assert size_in_words(tmp_path / "none") == "0 bytes"
