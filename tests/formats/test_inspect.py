"""`lmforge inspect` describes what is there, also what cannot be imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.formats.importing import import_model
from lmforge.formats.inspect import inspect
from tests.conftest import lmforge
from tests.formats.ggufs import gguf, model, without
from tests.formats.test_transformers import checkpoint

pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


def test_a_file_is_described(tmp_path: Path) -> None:
    content = inspect(gguf(tmp_path / "m.gguf", model(), "Q8_0"))
    assert (content["format"], content["family"], content["license"]) == ("gguf", "llama", "mit")
    assert content["tensors"]["Q8_0"]["bits"] == 8.5
    assert content["importable"]
    assert content["fits"]
    assert content["shape"]["block_count"] == 2


def test_what_cannot_be_imported_is_described_with_the_reason(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", model())
    content = inspect(without(path, **{"general.architecture": "mamba"}))
    assert content["family"] == "mamba"
    assert not content["importable"]
    assert "general.architecture = 'mamba'" in content["why"]
    assert content["parameters"] > 0
    folder = (
        checkpoint(tmp_path / "there", "llama", model_type="mamba2") if False else checkpoint(tmp_path / "c", "llama")
    )
    settings = json.loads((folder / "config.json").read_text()) | {"model_type": "mamba2"}
    (folder / "config.json").write_text(json.dumps(settings))
    assert "mamba2" in inspect(folder)["why"]


def test_a_checkpoint_and_a_model_of_ours(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c", "llama")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    theirs = inspect(folder)
    assert (theirs["family"], theirs["license"], theirs["importable"]) == ("llama", "apache-2.0", True)
    import_model(str(folder), tmp_path / "native")
    ours = inspect(tmp_path / "native")
    assert ours["format"] == "native"
    assert ours["tokenizer"] == theirs["tokenizer"]


def test_nothing_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no such file"):
        inspect(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert lmforge(capsys, monkeypatch, "inspect", str(tmp_path / "empty"))[0] == 2
    status, out, _ = lmforge(capsys, monkeypatch, "inspect", str(gguf(tmp_path / "m.gguf", model())), "--json")
    assert status == 0
    assert json.loads(out)["family"] == "llama"
