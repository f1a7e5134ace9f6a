"""Checkpoints in an object store: whole or passed over, and a run whose disk is lost goes on from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from lmforge.errors import InputError, LmforgeError
from lmforge.train.checkpoint import Checkpoints
from lmforge.train.remote_checkpoints import fetch_newest, put
from tests.train.test_checkpoint import trained


@pytest.fixture
def store() -> str:
    system = fsspec.filesystem("memory")
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)
    return "memory://bucket/run"


def test_a_lost_disk_is_made_good(tmp_path: Path, store: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    model, optimizers = trained(1)
    checkpoints = Checkpoints(tmp_path / "c", 2, store)
    for step in range(1, 5):
        checkpoints.save(
            step, model, optimizers, {"step": step, "best_step": 1}, tmp_path / "tokenizer.json", wait=False
        )
    checkpoints.close()
    system = fsspec.filesystem("memory")
    assert sorted(path.rsplit("/", 1)[-1] for path in system.ls("/bucket/run", detail=False)) == [
        "step-00000001",
        "step-00000003",
        "step-00000004",
    ]
    shutil.rmtree(tmp_path / "c")
    system.rm_file("/bucket/run/step-00000004/manifest.json")  # as if its copying had been cut short
    fresh = Checkpoints(tmp_path / "c", 2, store)
    assert fresh.load_newest(model, optimizers)["step"] == 3
    fresh.close()


def test_altered_copies_are_refused(tmp_path: Path, store: str) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    model, optimizers = trained(1)
    checkpoints = Checkpoints(tmp_path / "c", 2)
    checkpoints.save(1, model, optimizers, {"step": 1}, tmp_path / "tokenizer.json")
    put(checkpoints.path(1), store)
    checkpoints.close()
    fsspec.filesystem("memory").pipe_file("/bucket/run/step-00000001/state.json", b"{}")
    with pytest.raises(InputError, match=r"state\.json: its bytes do not match"):
        fetch_newest(store, tmp_path / "d")
    assert not list((tmp_path / "d").iterdir())


def test_an_empty_or_unknown_store(tmp_path: Path, store: str) -> None:
    fetch_newest(store, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(InputError, match=r"train\.store: nowhere://x"):
        fetch_newest("nowhere://x", tmp_path / "d")


def test_a_store_that_fails_says_that_the_checkpoint_is_safe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "manifest.json").write_text("{}")
    with pytest.raises(LmforgeError, match=r"could not be copied there.*it is safe in"):
        put(tmp_path / "step-00000001", f"file://{tmp_path}/file/inside")


def test_another_recipes_copies_are_neither_fetched_nor_removed(tmp_path: Path, store: str) -> None:
    """A store's address may stay in a recipe whose other keys change."""
    (tmp_path / "tokenizer.json").write_text("{}")
    model, optimizers = trained(1)

    def of(run: str, key: str) -> Checkpoints:
        (tmp_path / run).mkdir(exist_ok=True)
        (tmp_path / run / "key").write_text(key * 64)
        return Checkpoints(tmp_path / run / "checkpoints", 1, store)

    for run, key in (("before", "a"), ("after", "b")):
        checkpoints = of(run, key)
        assert checkpoints.load_newest(model, optimizers) is None
        for step in (1, 2):
            checkpoints.save(step, model, optimizers, {"step": step, "best_step": 2}, tmp_path / "tokenizer.json")
        checkpoints.close()
    fresh = of("again", "a")
    assert fresh.load_newest(model, optimizers)["step"] == 2
    fresh.close()
