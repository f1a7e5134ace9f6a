"""The command that fine-tunes on SQuAD 2.0: files, figures, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmforge.evaluate.squad import gold_of, questions_of
from lmforge.evaluate.squad_metrics import official
from lmforge.formats.native import model_tensors, write_model
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.record import atomic_directory
from lmforge.tokens.bpe import train_on_pieces
from tests.conftest import lmforge
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.squad_for_tests import squad_pack


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of the alphabet, and a small pack."""
    monkeypatch.setenv("LMFORGE_DATA", str(shared_packs(tmp_path, squad_pack()).parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    tokenizer = train_on_pieces([(b" is", 9), (b" What", 9), (b" the", 9)], 264)
    tokenizer.save(tmp_path / "tokenizer.json")
    network = GPT(GPTConfig(264, 128, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=32))
    network.initialise(0)
    with atomic_directory(tmp_path / "model") as folder:
        write_model(folder, network.config, model_tensors(network), tmp_path / "tokenizer.json")
    return tmp_path / "model"


def test_squad_is_tuned_and_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = ["--out", str(out), "--examples", "8", "--epochs", "1", "--limit", "6", "--lora", "2", "--window", "96"]
    status, said, err = lmforge(capsys, monkeypatch, "squad", str(model), *options, "--stride", "16")
    assert status == 0, err
    assert "no answer to any question" in said
    assert "HasAns_f1" in said
    read = {name: json.loads((out / f"{name}.json").read_text()) for name in ("squad", "predictions", "dev")}
    assert read["squad"]["items"] == len(read["predictions"]) == 6
    assert read["squad"]["questions"]["learned"]["questions"] == 8
    figures = official(gold_of(questions_of(read["dev"]["data"])), read["predictions"])
    assert {key: read["squad"]["official"][key] for key in figures} == pytest.approx(figures)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--learn-dev", "1.5", "give a share"), ("--window", "24", "raise --window"), ("--stride", "0", "--stride")],
)
def test_bad_options_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    option: str, value: str, words: str,
) -> None:  # fmt: skip
    status, _, err = lmforge(capsys, monkeypatch, "squad", str(model), "--out", str(tmp_path / "out"), option, value)
    assert status == 2
    assert words in err
    assert not (tmp_path / "out").exists()
