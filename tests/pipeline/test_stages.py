"""Stages are declared whole: nothing knows one by its name; inputs that are gone are no error."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lmforge.pipeline import NAMES, STAGES
from lmforge.pipeline.stages import makers, stage_named
from lmforge.pipeline.state import GONE
from lmforge.recipe import Corpus, Finetune, Recipe, Source

PIPELINE = Path(__file__).parents[2] / "src" / "lmforge" / "pipeline"


def test_every_need_is_made_by_an_earlier_stage() -> None:
    for place, stage in enumerate(STAGES):
        assert {*stage.needs} <= {path for earlier in STAGES[:place] for path in earlier.makes}
        assert all(NAMES.index(maker.name) < place for maker in makers(stage.needs))


def test_only_training_is_collective_today() -> None:
    assert [stage.name for stage in STAGES if stage.collective] == ["train"]


@pytest.mark.parametrize("path", sorted(PIPELINE.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_asks_for_a_stages_name(path: Path) -> None:
    compared = [
        operand.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for operand in (node.left, *node.comparators)
        if isinstance(operand, ast.Constant)
    ]
    assert not {*compared} & {*NAMES}


def test_inputs_that_cannot_be_read_are_gone(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    recipe = Recipe(corpus=Corpus(sources=(Source(kind="folder", path=lost),), toxic_words=lost, decontaminate=(lost,)))
    inputs = stage_named("corpus").inputs(recipe)
    assert inputs["source 0 (folder)"] == GONE
    assert inputs["corpus filters"] == GONE
    assert inputs["benchmark lost"] == GONE
    fine = recipe.model_copy(update={"finetune": Finetune(base=lost, task="chat", train=lost)})
    assert stage_named("corpus").inputs(fine) == {"lost": GONE, "base": GONE}
    for name in ("tokens", "train"):
        assert stage_named(name).inputs(fine) == {"base": GONE}
