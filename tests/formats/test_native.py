"""Models on disk: what is written is what is loaded, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lmforge.errors import InputError
from lmforge.formats.native import load_model, model_tensors, read_config, write_model
from lmforge.record import atomic_directory
from tests.model.test_gpt import SHAPES, network, tokens


def saved(directory: Path, config=SHAPES[3]) -> Path:
    (directory / "tok.json").write_text("{}")
    with atomic_directory(directory / "m") as temporary:
        write_model(temporary, config, model_tensors(network(config)), directory / "tok.json", notes={"step": 3})
    return directory / "m"


@pytest.mark.parametrize("config", SHAPES)
def test_loaded_is_what_was_saved(tmp_path: Path, config) -> None:
    loaded = load_model(saved(tmp_path, config))
    assert loaded.config == config
    with torch.no_grad():
        assert torch.equal(loaded(tokens(2, 8)), network(config)(tokens(2, 8)))


def test_the_tied_head_is_stored_once(tmp_path: Path) -> None:
    assert "head.weight" not in model_tensors(network(SHAPES[0]))


def test_damage_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: its bytes do not match"):
        load_model(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model here"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": {"widgets": 3}}')
    with pytest.raises(InputError, match="not a configuration"):
        read_config(tmp_path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    path = saved(tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["architecture"]["ngram_rows"] = 0
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"unexpected .*ngrams"):
        load_model(path, verify=False)


def test_a_compressed_model_needs_its_restorer(tmp_path: Path) -> None:
    path = saved(tmp_path)
    config = json.loads((path / "config.json").read_text()) | {"compression": [{"method": "quantize"}]}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="a compressed model"):
        load_model(path, verify=False)
