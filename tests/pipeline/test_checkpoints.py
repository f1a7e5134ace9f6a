"""Whose checkpoints lie there: the same training's are gone on from, another's are kept aside and brought back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmforge.errors import Interrupted
from lmforge.pipeline import is_trained, run_stages, states
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import Record
from tests.conftest import tiny_recipe, tiny_texts


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def stable_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with a stable learning rate, finished."""
    base = tmp_path_factory.mktemp("stable")
    settings = {"schedule": "wsd", "warmup": 2, "ensemble": 2, "steps": 10, "checkpoint_every": 2, "keep": 3}
    recipe = load_recipe(tiny_recipe(base / "r.toml", tiny_texts(base / "texts"), base / "run", **settings))
    run_stages(recipe, recipe.directory, until="train")
    return base / "run"


def with_(run: Path, *overrides: str) -> Recipe:
    return load_recipe(run / "recipe.toml", overrides)


def checkpoints(train: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (train / "checkpoints").glob("step-*"))


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "override",
    [
        "train.keep=1",
        "train.validate_every=3",
        "train.checkpoint_every=5",
        "train.max_seconds=1e9",
        "train.threads=2",
        "train.micro_batch_tokens=64",
        "model.recompute=true",
        "parallel.data=2",
        "tokens.workers=2",
        "corpus.workers=2",
        "serve.port=1",
    ],
)
def test_how_it_is_made_makes_nothing_stale(run: Path, override: str) -> None:
    assert {state.state for state in states(with_(run, override), run)} == {"done"}


def test_a_shorter_training_keeps_the_longer_one_aside_and_gives_it_back(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = with_(run)
    before, weights = files(run / "train"), Record(run).stages["train"]["figures"]["weights_sha256"]
    run_stages(with_(run, "train.steps=3"), run, until="train")
    told = capsys.readouterr().err
    assert "train (again: train.steps 12 → 3" in told
    assert "what was there is kept in" in told
    assert "train.stale-1" in told
    assert before <= files(run / "train.stale-1")
    assert checkpoints(run / "train") == [3]

    run_stages(longer, run, until="train")
    assert "brought back" in capsys.readouterr().err
    entry = Record(run).stages["train"]
    assert entry["figures"]["weights_sha256"] == weights
    assert entry["figures"]["steps"] == 12
    assert checkpoints(run / "train") == [8, 12]
    assert [path.name for path in run.glob("train.stale-*")] == ["train.stale-2"]
    assert checkpoints(run / "train.stale-2") == [3]


def test_fresh_throws_away_what_was_kept_and_names_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_stages(with_(run, "train.peak_lr=1e-4"), run, only="train")
    assert (run / "train.stale-1").exists()
    capsys.readouterr()
    run_stages(with_(run, "train.peak_lr=1e-4"), run, only="train", fresh=True)
    assert not [*run.glob("train.stale-*")]
    assert "train.stale-1: removed, as --fresh asks" in capsys.readouterr().err


def test_other_validation_text_chooses_again_from_the_same_training(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "train" / "metrics.jsonl").read_text()
    run_stages(with_(run, "train.validate_tokens=300"), run, until="train")
    assert "its model is chosen again" in capsys.readouterr().err
    assert (run / "train" / "metrics.jsonl").read_text() == before
    assert not [*run.glob("train.stale-*")]
    assert is_trained(run)
    assert states(with_(run, "train.validate_tokens=300"), run)[2].state == "done"


def test_a_longer_training_with_another_rate_says_why_it_begins_anew(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(with_(run, "train.steps=14"), run, until="train")
    told = capsys.readouterr().err
    assert "cannot go on from a checkpoint" in told
    assert "cosine" in told
    assert 'train.schedule = "wsd"' in told
    assert checkpoints(run / "train.stale-1") == [8, 12]


def test_a_longer_training_with_a_stable_rate_goes_on_and_ends_as_if_begun_so(
    stable_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stable_run, tmp_path / "run")
    run = tmp_path / "run"
    assert 6 in checkpoints(run / "train")
    longer = with_(run, "train.steps=20")
    assert run_stages(longer, run, until="train")["train"]["steps"] == 20
    told = capsys.readouterr().err
    assert "goes on from step 6" in told
    assert "going on from step 6" in told  # the training itself
    assert {8, 10} <= {*checkpoints(run / "train.stale-1")}
    entry = Record(run).stages["train"]

    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    run_stages(longer, run, only="train", fresh=True)
    assert Record(run).stages["train"]["figures"]["weights_sha256"] == entry["figures"]["weights_sha256"]


def test_a_stopped_training_goes_on_in_the_way_that_is_stated_now(tmp_path: Path) -> None:
    """Smaller micro-batches are how a training that ran out of memory goes on."""
    path = tiny_recipe(tmp_path / "r.toml", tiny_texts(tmp_path / "texts"), tmp_path / "run")
    with pytest.raises(Interrupted):
        run_stages(load_recipe(path, ["train.max_seconds=1e-9"]), tmp_path / "run", until="train")
    assert checkpoints(tmp_path / "run" / "train") == [1]
    figures = run_stages(load_recipe(path, ["train.micro_batch_tokens=64"]), tmp_path / "run", until="train")["train"]
    assert "64 tokens" in figures["way"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert not [*(tmp_path / "run").glob("train.stale-*")]


def test_an_attempt_without_a_checkpoint_is_not_worth_keeping(run: Path) -> None:
    shutil.rmtree(run / "train" / "checkpoints")
    shutil.rmtree(run / "train" / "snapshots")
    run_stages(with_(run, "train.peak_lr=1e-4"), run, until="train")
    assert not [*run.glob("train.stale-*")]
