"""What the stage leaves: scores of every model, their fingerprints, nothing half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.errors import InputError
from lmforge.evaluate.harness import benchmark_texts, evaluate, task_inputs
from lmforge.evaluate.task import TASKS
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import content_hash
from tests.conftest import tiny_recipe, tiny_texts
from tests.evaluate.conftest import save, tiny_model


def run(recipe: Recipe, base: Path, out: Path, *names: str) -> dict[str, Any]:
    figures: dict[str, Any] = evaluate(
        recipe, {name: base / name for name in names}, base / "corpus", base / "tokens", out
    )["tasks"]
    return figures


def test_every_default_task_of_every_model(base: Path, recipe: Recipe, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    figures = run(recipe, base, tmp_path / "scores", "model", "compressed")
    assert torch.get_num_threads() == threads
    wanted = set(recipe.evaluate.tasks)
    by_themselves = {name for name, task in TASKS.items() if task.family}  # benchmarks of any model
    assert wanted == set(TASKS) - {"answers", "passkey"} - by_themselves  # for fine-tuning; for long contexts
    alone = {name for name, task in TASKS.items() if not task.per_model}
    assert set(figures) == {*wanted, *(f"{name}.compressed" for name in wanted - alone)}
    assert content_hash(tmp_path / "scores")
    for name in wanted:
        content = json.loads((tmp_path / "scores" / f"{name}.json").read_text())
        assert {key: content[key] for key in figures[name]} == figures[name]
        assert set(figures[name]) == {"metric", "value", "low", "high", "items", "fingerprint"}
        assert set(content["models"]) == (set() if name in alone else {"compressed"})
        for other, score in content["models"].items():
            assert score["fingerprint"] == content["fingerprint"]
            assert figures[f"{name}.{other}"]["value"] == score["value"]
        rows = [json.loads(line) for line in (tmp_path / "scores" / f"{name}.items.jsonl").read_text().splitlines()]
        assert len(rows) == content["items"] * (1 + len(content["models"]))
        assert {row["model"] for row in rows} == ({"baseline"} if name in alone else {"model", "compressed"})
    against = json.loads((tmp_path / "scores" / "kneser_ney.json").read_text())["against"]
    assert against["compressed"]["ratio"] == pytest.approx(
        figures["bits_per_byte.compressed"]["value"] / figures["kneser_ney"]["value"]
    )


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("evaluate.max_tokens=1500", {"data", "limits"}),
        ("tokens.context=16", {"prompt"}),
        ("seed=9", set()),
        ("evaluate.items=2", set()),
    ],
)
def test_the_fingerprint_is_of_what_matters(
    base: Path, recipe: Recipe, tmp_path: Path, override: str, changed: set[str]
) -> None:
    found = []
    for place, overrides in (("a", []), ("b", [override])):
        only = load_recipe(base / "recipe.toml", ['evaluate.tasks=["bits_per_byte"]', *overrides])
        run(only, base, tmp_path / place, "model")
        found.append(json.loads((tmp_path / place / "bits_per_byte.json").read_text()))
    parts = [score["comparison_key"] for score in found]
    assert {key for key in parts[0] if parts[0][key] != parts[1][key]} == changed
    assert (found[0]["fingerprint"] == found[1]["fingerprint"]) == (not changed)


def test_the_model_is_no_part_of_the_fingerprint(base: Path, tmp_path: Path) -> None:
    save(tiny_model(7), tmp_path / "model", base)
    only = load_recipe(base / "recipe.toml", ['evaluate.tasks=["bits_per_byte"]'])
    one = run(only, base, tmp_path / "a", "model")["bits_per_byte"]
    other = evaluate(only, {"model": tmp_path / "model"}, base / "corpus", base / "tokens", tmp_path / "b")["tasks"][
        "bits_per_byte"
    ]
    assert one["fingerprint"] == other["fingerprint"]
    assert one["value"] != other["value"]


def test_a_task_that_does_not_apply_says_why(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmforge.evaluate.tasks.code.find_items", lambda _: iter(()))
    only = load_recipe(base / "recipe.toml", ['evaluate.tasks=["completions_parse"]'])
    figures = run(only, base, tmp_path / "scores", "model")["completions_parse"]
    assert figures["value"] is None
    assert figures["items"] == 0
    assert "no Python function" in figures["not_applicable"]


def test_a_baseline_needs_no_model(base: Path, tmp_path: Path) -> None:
    only = load_recipe(base / "recipe.toml", ['evaluate.tasks=["kneser_ney"]'])
    assert set(evaluate(only, {}, base / "corpus", base / "tokens", tmp_path / "scores")["tasks"]) == {"kneser_ney"}


def test_another_tokenizers_model_is_refused_and_old_scores_stay(base: Path, recipe: Recipe, tmp_path: Path) -> None:
    from lmforge.corpus.build import build_corpus
    from lmforge.tokens.build import build_tokens

    run(load_recipe(base / "recipe.toml", ['evaluate.tasks=["bits_per_byte"]']), base, tmp_path / "scores", "model")
    before = content_hash(tmp_path / "scores")
    other = load_recipe(tiny_recipe(tmp_path / "recipe.toml", tiny_texts(tmp_path / "texts", 60, seed=4), tmp_path))
    build_corpus(other, tmp_path / "corpus")
    build_tokens(other, tmp_path / "corpus", tmp_path / "tokens")
    with pytest.raises(
        InputError, match=r"model: made with another tokenizer than .*tokenizer.json; run the train stage again"
    ):
        evaluate(other, {"model": base / "model"}, tmp_path / "corpus", tmp_path / "tokens", tmp_path / "scores")
    with pytest.raises(InputError, match="missing"):
        evaluate(recipe, {"model": tmp_path / "missing"}, base / "corpus", base / "tokens", tmp_path / "scores")
    assert content_hash(tmp_path / "scores") == before


def test_a_file_that_a_task_scores_is_an_input_and_kept_out_of_the_corpus(base: Path, tmp_path: Path) -> None:
    (tmp_path / "wiki.jsonl").write_text('{"text": "Only here."}\n')
    chosen = f'evaluate.tasks=["passkey", {{name="bits_per_byte", label="wiki", data="{tmp_path / "wiki.jsonl"}"}}]'
    recipe = load_recipe(base / "recipe.toml", [chosen])
    before = task_inputs(recipe)
    assert [*before] == ["task wiki (data)"]
    assert benchmark_texts(recipe)["wiki"] == ["Only here."]
    assert {*benchmark_texts(recipe)} == {"passkey", "wiki"}
    (tmp_path / "wiki.jsonl").write_text('{"text": "Other."}\n')
    assert task_inputs(recipe) != before
    (tmp_path / "wiki.jsonl").unlink()
    assert task_inputs(recipe) == {"task wiki (data)": "gone"}
