"""A standard benchmark as a task of ours: interval, rows, fingerprint, contaminated items apart, the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")
from lmforge.evaluate.harness import describe
from lmforge.evaluate.task import TASKS, Context
from lmforge.evaluate.tasks.standard import estimate, texts_of
from tests.evaluate.conftest import score_of
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.test_harness_model import network


@pytest.fixture
def context(context_of: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    rows = [
        {"goal": f"To open box number {number} of wood", "sol1": "turn the key", "sol2": "eat it", "label": number % 2}
        for number in range(6)
    ]
    root = shared_packs(tmp_path, {"piqa": {"validation.jsonl": rows}})
    monkeypatch.setenv("LMFORGE_DATA", str(root.parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    context = context_of(network())
    context.weights, context.items_dir = "w", tmp_path / "items"
    return context


def test_a_score_has_all_that_makes_it_comparable(context: Context, tmp_path: Path) -> None:
    score = score_of("piqa", context)
    assert score.items == 6
    assert score.low <= score.value <= score.high  # type: ignore[operator]
    assert score.value == np.mean([row["acc"] for row in score.rows])
    assert score.extra["harness"]["lmforge_piqa"]["acc,none"] == pytest.approx(score.value)
    assert score.extra["joins"] == {"together": 6}
    assert score.clean["leaked_share"] == 0
    assert score.clean["clean_value"] == score.value
    row = score.rows[0]
    assert row["prompt"] == "Question: To open box number 0 of wood\nAnswer:"
    assert row["answer"] == " turn the key"
    assert row["completion"] in (" turn the key", " eat it")
    (log,) = (tmp_path / "items").iterdir()
    assert len(log.read_text().splitlines()) == 6 + 1  # an item a line, and what was found of training text
    again = score_of("piqa", context, batch_tokens=1)
    assert again.rows == score.rows
    assert again.comparison_key == score.comparison_key
    assert len(list((tmp_path / "items").iterdir())) == 1
    context.weights = "others"
    score_of("piqa", context, limit=2)
    assert len(list((tmp_path / "items").iterdir())) == 2


def test_the_fingerprint_is_of_data_prompts_and_model_files_of_the_cache(context: Context) -> None:
    task = TASKS["piqa"]
    whole, some = (describe(task, score_of("piqa", context, **given), context) for given in ({}, {"limit": 3}))
    assert whole["fingerprint"] != some["fingerprint"]
    context.weights = "others"
    other = describe(task, score_of("piqa", context), context)
    assert other["fingerprint"] == whole["fingerprint"]
    assert other["cache_key"] != whole["cache_key"]
    assert {"data", "prompts", "template", "shots", "marks", "code"} <= set(
        json.loads(json.dumps(whole["comparison_key"]))
    )


def test_what_a_corpus_must_not_hold_is_its_texts(context: Context) -> None:
    task = TASKS["piqa"]
    assert "To open box number 3 of wood" in list(task.texts(task.settled(context.recipe)))
    assert texts_of({"id": "long enough, but no text", "a": {"b": ["a text of the item", "no"]}}) == [
        "a text of the item"
    ]


def test_estimates_by_hand() -> None:
    labels = [{"right": a, "given": b} for a, b in ((1, 1), (1, 1), (0, 0), (0, 1))]
    assert estimate("f1", labels)[0] == pytest.approx(0.8)
    assert estimate("mcc", labels)[0] == pytest.approx(1 / np.sqrt(3))
    degrees = [{"right": float(a), "given": float(b)} for a, b in ((1, 1), (2, 4), (3, 9), (4, 16))]
    assert estimate("spearman", degrees)[0] == pytest.approx(1)
    assert estimate("pearson", degrees)[0] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 4, 9, 16])[0, 1])
    value, low, high = estimate("perplexity", [{"perplexity": -1.0}, {"perplexity": -3.0}])
    assert value == pytest.approx(np.exp(2))
    assert low is not None
    assert low <= value <= high  # type: ignore[operator]
