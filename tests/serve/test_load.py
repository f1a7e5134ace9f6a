"""What MODEL on the command line means, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.record import write_manifest
from lmforge.serve.load import LoadedModel, load_served, resolve
from lmforge.tokens.bpe import train_tokenizer
from tests.serve.conftest import CONTEXT, save_tiny


@pytest.fixture
def run(tmp_path: Path, model_dir: Path) -> Path:
    """A run with a model, a compressed model (other weights) and a checkpoint."""
    directory = tmp_path / "laptop"
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
    served = load_served(run)
    assert (served.name, served.directory, served.context) == ("laptop", run / "compressed", CONTEXT)
    assert served.fingerprint
    assert served.document("the cat")[0] == served.tokenizer.end_of_text
    assert served.tokenizer.decode(served.document("the cat")) == "the cat"
    assert load_served(run / "train" / "checkpoints" / "step-00000500").name == "laptop-step-00000500"
    assert load_served(run, "model").fingerprint != served.fingerprint


@pytest.mark.parametrize("size", [257, 261])
def test_the_server_asks_with_the_known_ids(served: LoadedModel, size: int) -> None:
    """The golden conversations of tests/tokens: the same ids as in training, for models with and without chat
    tokens."""
    path = Path(__file__).parents[1] / "tokens" / "golden" / "conversations.json"
    chat = size == 261
    asked = dataclasses.replace(served, tokenizer=train_tokenizer([], size, chat=chat))
    for conversation in json.loads(path.read_text("utf-8"))["conversations"]:
        assert asked.conversation(conversation["messages"]) == conversation[str(size)]["ask"]
    assert (asked.chat_stop == ()) is chat
    assert len(asked.stop_ids) == (5 if chat else 1)


@pytest.mark.parametrize("made", ["nothing", "file", "empty folder"])
def test_nothing_to_serve_says_what_was_looked_for(tmp_path: Path, made: str) -> None:
    path = tmp_path / "model"
    if made == "file":
        path.write_text("")
    elif made == "empty folder":
        path.mkdir()
    with pytest.raises(InputError, match=r"config\.json") as caught:
        load_served(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_models_tokenizer_is_refused(run: Path) -> None:
    """Even with a manifest that fits: the hash inside config.json decides."""
    model = run / "model"
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    write_manifest(model)
    with pytest.raises(InputError, match="not the tokenizer this model was trained with"):
        load_served(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="missing"):
        load_served(model)


def test_altered_weights_are_refused(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"model\.safetensors.*checksum"):
        load_served(run / "model")
