"""Two runs side by side: refused when not scored alike, differences with intervals else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.compare import compare
from lmforge.evaluate.harness import evaluate
from lmforge.recipe import load_recipe
from tests.evaluate.conftest import save, tiny_model


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs' scores: of an untrained model, and of one that takes all tokens to be equally likely."""
    folder = tmp_path_factory.mktemp("compare")
    recipe = load_recipe(base / "recipe.toml")
    for name, seed in (("first", 1), ("second", None)):
        save(tiny_model(seed), folder / name / "model", base)
        models = {"model": folder / name / "model", "compressed": base / "compressed"}
        evaluate(recipe, models, base / "corpus", base / "tokens", folder / name / "scores")
    return folder / "first", folder / "second"


@pytest.fixture
def altered(runs: tuple[Path, Path], tmp_path: Path) -> Callable[[str, Callable[[dict[str, Any]], None]], Path]:
    """A copy of the second run with one score's file changed."""

    def alter(task: str, change: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copytree(runs[1] / "scores", tmp_path / "run" / "scores")
        path = tmp_path / "run" / "scores" / f"{task}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return tmp_path / "run"

    return alter


def test_differences_with_paired_intervals(runs: tuple[Path, Path]) -> None:
    result = compare(*runs)
    row = result["tasks"]["bits_per_byte"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["paired"]
    assert row["differs"] == (not row["low"] <= 0 <= row["high"])
    same = result["tasks"]["bits_per_byte.compressed"]
    assert (same["difference"], same["low"], same["high"], same["differs"], same["better"]) == (0, 0, 0, False, None)
    assert result["tasks"]["completions_parse"]["paired"]
    assert not result["tasks"]["generation_speed"]["paired"]
    assert result["tasks"]["kneser_ney"]["difference"] == 0
    assert result["left_out"] == {}


def test_turned_round_it_says_the_same(runs: tuple[Path, Path]) -> None:
    there, back = compare(*runs)["tasks"]["bits_per_byte"], compare(*reversed(runs))["tasks"]["bits_per_byte"]
    assert (there["low"], there["high"]) == pytest.approx((-back["high"], -back["low"]), abs=1e-9)
    assert {there["better"], back["better"]} in ({"first", "second"}, {None})


def test_which_way_is_better(runs: tuple[Path, Path], altered: Callable[..., Path]) -> None:
    def slower(score: dict[str, Any]) -> None:
        score |= {"value": 1e-3, "low": 0.9e-3, "high": 1.1e-3}

    row = compare(runs[0], altered("generation_speed", slower))["tasks"]["generation_speed"]
    assert (row["differs"], row["better"]) == (True, "first")


@pytest.mark.parametrize(
    "part", ["data", "prompt", "marks", "tokenizer", "seed", "limits", "format", "dtype", "metric"]
)
def test_refused_with_the_part_that_differs(runs: tuple[Path, Path], altered: Callable[..., Path], part: str) -> None:
    other = altered("bits_per_byte", lambda score: score["comparison_key"].update({part: "something else"}))
    with pytest.raises(InputError, match=rf"^bits_per_byte: not scored alike in .*: {part} differ \(.*something else"):
        compare(runs[0], other)


def test_a_part_that_one_lacks_is_a_difference(runs: tuple[Path, Path], altered: Callable[..., Path]) -> None:
    other = altered("completions_parse", lambda score: score["comparison_key"].pop("python"))
    with pytest.raises(InputError, match=r"completions_parse: not scored alike .*python differ"):
        compare(runs[0], other)


def test_another_machines_speed_is_left_out(runs: tuple[Path, Path], altered: Callable[..., Path]) -> None:
    other = altered("generation_speed", lambda score: score["comparison_key"]["machine"].update({"threads": 99}))
    result = compare(runs[0], other)
    assert result["left_out"] == {"generation_speed": "measured on another machine or with other settings (threads)"}
    assert "bits_per_byte" in result["tasks"]
    assert "generation_speed" not in result["tasks"]


def test_a_task_that_does_not_apply_is_left_out(runs: tuple[Path, Path], altered: Callable[..., Path]) -> None:
    other = altered("completions_parse", lambda score: score.update({"value": None, "not_applicable": "no Python"}))
    assert compare(runs[0], other)["left_out"] == {"completions_parse": "no Python"}


def test_nothing_to_compare(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scores here; run: lmforge evaluate"):
        compare(runs[0], tmp_path)
    (tmp_path / "scores").mkdir()
    shutil.copy(runs[0] / "scores" / "kneser_ney.json", tmp_path / "scores" / "other.json")
    with pytest.raises(InputError, match="no score in common"):
        compare(runs[0], tmp_path)
    (tmp_path / "scores" / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json: not a score that lmforge wrote"):
        compare(runs[0], tmp_path)
