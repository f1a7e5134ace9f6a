"""A task from outside the package: one file, one registration, and every place that shows scores knows it. The file is
the one that CONTRIBUTING.md shows."""

from __future__ import annotations

import importlib.util
import json
import re
import textwrap
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.harness import evaluate, headlines
from lmforge.evaluate.task import TASKS
from lmforge.recipe import load_recipe, parse_recipe, to_toml
from lmforge.recipe.evaluate import TASK_SETTINGS
from lmforge.report.page import write_report

SHOWN = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task in a file of its own, imported; forgotten afterwards."""
    (code,) = (each for each in re.findall(r"```python\n(.*?)  ```", SHOWN, re.DOTALL) if "class Vowels" in each)
    (tmp_path / "vowels.py").write_text(textwrap.dedent(code))
    for registry in (TASKS, TASK_SETTINGS):
        len(registry)  # those of the package come first
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    spec = importlib.util.spec_from_file_location("vowels", tmp_path / "vowels.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.usefixtures("toy")
def test_it_is_scored_and_shown_like_any_other(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = 'evaluate.tasks=[{name="vowels", letters="aeiouy", limit=300}, {name="vowels", label="all"}]'
    recipe = load_recipe(base / "recipe.toml", [chosen, "evaluate.items=8"])
    (run / "x").mkdir(parents=True)
    figures = evaluate(recipe, {"model": base / "model"}, base / "corpus", base / "tokens", run / "scores")["tasks"]
    content = json.loads((run / "scores" / "vowels.json").read_text())
    assert (content["value"], content["items"]) == (6 / 300, 300)
    assert (figures["all"]["value"], figures["all"]["items"]) == (
        0,
        8,
    )  # evaluate.items stands for a limit that is left out
    assert headlines(figures) == "2% vowels; 0% vowels"
    page = write_report(run).read_text()
    assert "Of 300 tokens, 2% are vowels." in page
    assert "2% vowels" not in page  # the run's record has no figures yet
    assert parse_recipe({"evaluate": {"tasks": list(recipe.evaluate.tasks)}}).evaluate.tasks == recipe.evaluate.tasks
    (tmp_path / "again.toml").write_text(to_toml(recipe))
    assert load_recipe(tmp_path / "again.toml").evaluate == recipe.evaluate


@pytest.mark.usefixtures("toy")
def test_its_settings_are_checked_with_the_recipe(base: Path) -> None:
    for tasks, message in [
        ('[{name="vowels", leters="a"}]', "unknown key 'leters' .*did you mean 'letters'"),
        ('[{name="vowels", limit=0}]', r"evaluate\.tasks\.0\.vowels\.limit"),
        ('["vowels", {name="vowels", limit=3}]', "two tasks are called 'vowels'"),
        ('["vowls"]', "did you mean 'vowels'"),
        ('[{name="passkey", shots=2}]', "unknown key 'shots'"),
        ("[{limit=2}]", "a task is needed"),
    ]:
        with pytest.raises(InputError, match=message):
            load_recipe(base / "recipe.toml", [f"evaluate.tasks={tasks}"])


def test_a_task_that_is_gone_shows_its_score_plainly(tmp_path: Path) -> None:
    (tmp_path / "run" / "scores").mkdir(parents=True)
    score = {"task": "vowels", "of": "model", "metric": "share of vowels", "value": 0.25, "items": 3, "models": {}}
    (tmp_path / "run" / "scores" / "vowels.json").write_text(json.dumps(score))
    assert "share of vowels" in write_report(tmp_path / "run").read_text()
    assert headlines({"vowels": {"metric": "share of vowels", "value": 0.25}}) == "share of vowels 0.250"
