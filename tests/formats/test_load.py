"""What MODEL on the command line means, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.formats.load import load_any, resolve
from lmforge.record import write_manifest
from tests.serve.conftest import CONTEXT, save_tiny


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a model, a compressed model (other weights) and a checkpoint."""
    directory, model_dir = tmp_path / "laptop", save_tiny(tmp_path / "tiny")
    shutil.copytree(model_dir, directory / "model")
    shutil.copytree(model_dir, directory / "train" / "checkpoints" / "step-00000500")
    save_tiny(directory / "compressed", seed=4)
    return directory


def test_a_run_means_its_compressed_model_first(run: Path) -> None:
    assert resolve(run) == run / "compressed"
    assert resolve(run, "model") == run / "model"
    (run / "compressed" / "manifest.json").unlink()
    assert resolve(run) == run / "model"
    with pytest.raises(InputError, match="incomplete"):
        resolve(run, "compressed")


def test_models_and_checkpoints_mean_themselves(run: Path) -> None:
    for path in (run / "model", run / "train" / "checkpoints" / "step-00000500"):
        assert resolve(path) == path
    with pytest.raises(InputError, match="itself a model"):
        resolve(run / "model", "compressed")


def test_what_is_loaded(run: Path) -> None:
    served = load_any(run)
    assert (served.name, served.directory, served.context) == ("laptop", run / "compressed", CONTEXT)
    assert served.fingerprint
    assert served.document("the cat")[0] == served.tokenizer.end_of_text
    assert served.tokenizer.decode(served.document("the cat")) == "the cat"
    assert load_any(run / "train" / "checkpoints" / "step-00000500").name == "laptop-step-00000500"
    assert load_any(run, "model").fingerprint != served.fingerprint


@pytest.mark.parametrize("made", ["nothing", "file", "empty folder"])
def test_nothing_to_serve_says_what_was_looked_for(tmp_path: Path, made: str) -> None:
    path = tmp_path / "model"
    if made == "file":
        path.write_text("")
    elif made == "empty folder":
        path.mkdir()
    with pytest.raises(InputError, match=r"config\.json") as caught:
        load_any(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_models_tokenizer_is_refused(run: Path) -> None:
    """Even with a manifest that fits: the hash inside config.json decides."""
    model = run / "model"
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    write_manifest(model)
    with pytest.raises(InputError, match="not the tokenizer this model was trained with"):
        load_any(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="missing"):
        load_any(model)


def test_altered_weights_are_refused(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors.*checksum"):
        load_any(run / "model")


def test_a_folder_of_no_format_names_the_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(
        InputError, match=r"notes\.txt: is no file of a known format \(native, exported, transformers, gguf, adapter"
    ):
        load_any(tmp_path / "notes.txt")
