"""What will keep a training from learning is said before its first step, with the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.formats.native import load_model, model_tensors, write_model
from lmforge.pipeline import run_stages
from lmforge.record import atomic_directory
from lmforge.tokens.shards import Shards
from lmforge.train.loop import train
from tests.train.runs import recipe_of
from tests.train.test_finetune import base, labelled  # noqa: F401
from tests.train.test_finetune import recipe_of as finetune_recipe


def warnings(text: str) -> list[str]:
    """Those said before the first step."""
    before = text.split("train: chose")[0].splitlines()
    return [line.removeprefix("train: warning: ") for line in before if line.startswith("train: warning: ")]


def test_too_few_updates_and_a_part_of_the_text(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    tokens = Shards.open(tiny_run / "tokens", "train").tokens
    assert warnings(capsys.readouterr().err) == [
        "12 updates are few to learn from; raise train.steps",
        f"12 steps read 3,072 of the {tokens:,} training tokens, {3072 / tokens:.2f} of an epoch; raise train.steps "
        "for all of them",
    ]
    train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")  # a run that goes on was told
    assert not warnings(capsys.readouterr().err)
    enough = recipe_of(tiny_run, steps=50, batch_tokens=tokens // 50 // 32 * 32 + 32)
    train(enough, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert not warnings(capsys.readouterr().err)


def test_a_fine_tune_of_few_examples(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    labelled(tmp_path / "examples.jsonl", 60)
    recipe = finetune_recipe(tmp_path, base, batch_tokens=1024)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": None})})
    run_stages(recipe, recipe.directory, until="train")
    lines = warnings(capsys.readouterr().err)
    assert len(lines) == 1
    assert "updates are few to learn from; lower train.batch_tokens (now 1,024) to" in lines[0]
    assert lines[0].endswith(", or raise finetune.epochs or train.tokens")


def test_a_label_without_training_examples(
    base: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = labelled(tmp_path / "examples.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:9]) + "\n")
    labels = 'labels = { hot = "hot", cold = "cold", grey = "grey" }\ntest = "test.jsonl"\n'
    recipe = finetune_recipe(tmp_path, base, labels, steps=60)
    run_stages(recipe, recipe.directory, until="train")
    said = [line for line in warnings(capsys.readouterr().err) if line.startswith("label")]
    assert len(said) == 1
    assert said[0].startswith("label 'grey' is in none of the ")
    assert said[0].endswith("training examples (0 in validation, 0 in test)")


@pytest.mark.parametrize("trained", [True, False])
def test_a_base_that_knows_nothing(
    base: Path,  # noqa: F811
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    trained: bool,
) -> None:
    labelled(tmp_path / "examples.jsonl")
    start = base
    if not trained:
        start, model = tmp_path / "untrained", load_model(base)
        model.initialise(2)
        with atomic_directory(start) as directory:
            write_model(directory, model.config, model_tensors(model), tiny_run / "tokens" / "tokenizer.json")
    recipe = finetune_recipe(tmp_path, start, steps=60)
    run_stages(recipe, recipe.directory, until="train")
    said = [line for line in warnings(capsys.readouterr().err) if line.startswith("finetune.base")]
    assert bool(said) == (not trained)
    assert all("and a uniform guess has 5.77: it knows nothing of such text" in line for line in said)
