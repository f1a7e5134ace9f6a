"""What another recipe would throw away: kept, named, brought back, and removed only when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.aside import asides, bring_back, drop, set_aside, size_in_words
from lmforge.corpus import build
from lmforge.recipe import load_recipe
from tests.conftest import tiny_recipe, tiny_texts


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


def test_a_stopped_corpus_of_another_recipe_is_kept_and_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_recipe(tmp_path / "r.toml", tiny_texts(tmp_path / "texts", 30), tmp_path / "run")
    first, other = load_recipe(path, ["corpus.analyse_bytes=0"]), load_recipe(path, ["corpus.min_chars=65"])

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build._Build, "_put_together", stop)
    work = build.work_folder(tmp_path / "corpus")
    keys = []
    for recipe in (first, other, first):
        with pytest.raises(KeyboardInterrupt):
            build.build_corpus(recipe, tmp_path / "corpus")
        keys.append((work / "key").read_text())
    assert keys[0] == keys[2] != keys[1]
    assert [(kept / "key").read_text() for kept in asides(work)] == [keys[1]]
