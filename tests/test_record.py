"""Artefacts are whole or not there, and altered bytes are noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmforge import record
from lmforge.errors import InputError, LmforgeError
from lmforge.record import (
    Record,
    atomic_directory,
    content_hash,
    hash_json,
    sweep_run,
    sweep_temporaries,
    verify_directory,
    write_atomic,
)


def fill(directory: Path, text: str = "hello") -> None:
    with atomic_directory(directory) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text(text)
        (temporary / "b.txt").write_text("b")


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    fill(tmp_path / "x")
    assert set(verify_directory(tmp_path / "x")["files"]) == {"deep/a.txt", "b.txt"}
    first = content_hash(tmp_path / "x")
    fill(tmp_path / "x", "other")
    assert content_hash(tmp_path / "x") != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path / "x")
    before = content_hash(tmp_path / "x")

    def fail_in_the_middle() -> None:
        with atomic_directory(tmp_path / "x") as temporary:
            (temporary / "half").write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert content_hash(tmp_path / "x") == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_altered_missing_and_incomplete(tmp_path: Path) -> None:
    fill(tmp_path / "x")
    (tmp_path / "x" / "b.txt").write_text("c")
    with pytest.raises(InputError, match=r"b\.txt: its bytes do not match the checksum"):
        verify_directory(tmp_path / "x")
    (tmp_path / "x" / "b.txt").unlink()
    assert content_hash(tmp_path / "x") is None
    with pytest.raises(InputError, match=r"b\.txt: missing"):
        verify_directory(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").unlink()
    with pytest.raises(InputError, match="incomplete"):
        verify_directory(tmp_path / "x")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LmforgeError, match="No space left on device"):
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_no_permission_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(InputError, match="no permission to write"):
        write_atomic(tmp_path / "f", "new")
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(InputError, match="a file stands where a directory is needed"):
        fill(tmp_path / "file" / "x")


def test_leftovers_of_killed_runs_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".x.abc.tmp").mkdir()
    (tmp_path / ".y.1.tmp").write_text("")
    (tmp_path / "kept").write_text("")
    sweep_temporaries(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_replacement_cut_short_between_its_renames_is_put_back(tmp_path: Path) -> None:
    fill(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.77.old.tmp")
    (tmp_path / ".model.abcd1234.tmp").mkdir()
    sweep_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert content_hash(tmp_path / "model")


def test_a_run_is_swept_wherever_it_writes_and_nothing_else_is(tmp_path: Path) -> None:
    ours = [
        ".model.abcd1234.tmp/x",
        ".record.json.12.tmp",
        ".corpus.abc_1234.tmp/documents/y",
        "train/.metrics.jsonl.tmp",
        "train/checkpoints/.step-00000004.q1w2e3r4.tmp/model.safetensors",
        "train/snapshots/.step-00000003.q1w2e3r4.tmp/model.safetensors",
        "train.stale-1/checkpoints/.step-00000003.q1w2e3r4.tmp/model.safetensors",
        "scores/.bits_per_byte.json.4.tmp",
    ]
    others = [
        ".notes.txt.tmp",  # the folder may hold other things
        ".editor.1234.tmp",
        "src/.mine.12.tmp",
        "train/checkpoints/step-00000004/model.safetensors",
        ".corpus.work/read/.00001.12.tmp/part",  # just written: a cluster's job may be at work
    ]
    old = ".corpus.work/read/.00002.12.tmp/part"
    for name in (*ours, *others, old):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for path in (tmp_path / old, (tmp_path / old).parent):
        os.utime(path, (1, 1))
    sweep_run(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*others}
    sweep_run(tmp_path / "nowhere")


def test_the_record_reads_back(tmp_path: Path) -> None:
    Record(tmp_path).enter(
        "corpus",
        key="k",
        inputs={"a": "1"},
        recipe={"x": 1},
        seed=1,
        seconds=2.0,
        outputs={"corpus": "h"},
        figures={"n": 3},
    )
    entry = Record(tmp_path).stages["corpus"]
    assert entry["key"] == "k"
    assert entry["machine"]["cores"] >= 1
    assert entry["code"].startswith(record.__version__)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(InputError, match="not a readable record"):
        Record(tmp_path)


def test_hashes_do_not_depend_on_key_order() -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1}) != hash_json({"a": 1, "b": [3]})
