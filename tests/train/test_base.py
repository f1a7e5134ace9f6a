"""A run that goes on from a GGUF file: taken as it is, or trained further."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.formats.gguf import read_gguf
from lmforge.formats.load import load_any
from lmforge.formats.native import model_tensors
from lmforge.pipeline import run_stages
from lmforge.recipe import load_recipe
from lmforge.train.select import hash_weights
from tests.conftest import tiny_texts
from tests.formats.ggufs import gguf, model

pytest.importorskip("gguf", reason="gguf, an optional extra, is not installed")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tiny_texts(tmp_path / "texts")
    gguf(tmp_path / "m.gguf", model())
    (tmp_path / "r.toml").write_text(
        f'name = "r"\nrun_dir = "{tmp_path}/run"\n[[corpus.sources]]\nkind = "folder"\npath = "texts"\n'
        '[model]\nbase = "m.gguf"\n[tokens]\ncontext = 64\n[train]\nsteps = 0\nbatch_tokens = 512\n'
        "validate_tokens = 512\n"
    )
    return tmp_path / "r.toml"


def test_a_base_is_the_model_as_it_is(tmp_path: Path, recipe: Path) -> None:
    loaded = load_recipe(recipe)
    figures = run_stages(loaded, loaded.directory, until="train")["train"]
    there, base = load_any(tmp_path / "run"), read_gguf(tmp_path / "m.gguf")
    assert figures["weights_sha256"] == hash_weights(model_tensors(base.model))
    assert hash_weights(model_tensors(there.model)) == figures["weights_sha256"]
    assert there.context == 128  # it reads as much as it did
    assert there.notes["license"] == "mit"
    assert run_stages(loaded, loaded.directory, until="train")["train"]["was"] == "done"


def test_training_goes_on_from_it_and_keeps_its_licence(tmp_path: Path, recipe: Path) -> None:
    loaded = load_recipe(recipe, ["train.steps=12", "train.peak_lr=3e-3", "train.ensemble=0"])
    before = run_stages(load_recipe(recipe), tmp_path / "run", until="train")["train"]
    after = run_stages(loaded, tmp_path / "run", until="train")["train"]
    assert after["valid_bits_per_byte"] < before["valid_bits_per_byte"]
    assert load_any(tmp_path / "run").notes["license"] == "mit"
    assert load_any(tmp_path / "run").tokenizer.sha256 == model().tokenizer.sha256
