"""SQuAD 2.0 by writing: right answers, none, too long ones; the baseline beside the score, and the suite it joins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.squad import gold_of, scored_questions
from lmforge.evaluate.squad_metrics import official
from lmforge.evaluate.suites import suites
from lmforge.evaluate.task import TASKS, Context
from lmforge.evaluate.tasks import squad as module
from lmforge.evaluate.writing import Writing
from lmforge.model.gpt import GPT, GPTConfig
from tests.evaluate.conftest import VOCABULARY, score_of
from tests.evaluate.packs_for_tests import shared_packs
from tests.evaluate.squad_for_tests import squad_pack


@pytest.fixture
def context(context_of: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("LMFORGE_DATA", str(shared_packs(tmp_path, squad_pack()).parent))
    monkeypatch.setenv("LMFORGE_PACKS", str(tmp_path / "none"))
    model = GPT(GPTConfig(VOCABULARY, 1024, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=32))
    model.initialise(0)
    made = context_of(model.eval())
    return dataclasses.replace(made, items_dir=tmp_path / "items", corpus_dir=tmp_path / "no-corpus")


def written(monkeypatch: pytest.MonkeyPatch, texts: Callable[[int], str]) -> list[list[int]]:
    """What the model is made to write; gives what it was asked."""
    asked: list[list[int]] = []

    def write(_: Context, prompts: list[list[int]], how: Writing, __: str) -> list[list[str]]:
        asked[:] = prompts
        return [[texts(number)] for number in range(len(prompts))]

    monkeypatch.setattr(module, "write", write)
    return asked


def test_official_figures_rows_and_the_baseline(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = scored_questions()

    def answer(number: int) -> str:
        answers = questions[number].answers
        return f" {answers[0].text}." if answers else " Unanswerable." if number % 4 == 1 else " red cat"

    asked = written(monkeypatch, answer)
    score = score_of("squad2", context)
    assert (score.metric, score.items) == ("F1", 16)
    assert score.value == 0.75  # all answers, half of the others
    assert score.low is not None
    assert score.low < 0.75
    assert score.extra["baselines"] == {"no_answer": 0.5}
    assert score.extra["above_baseline"]["value"] == 0.25
    assert {name: part["value"] for name, part in score.extra["parts"].items()} == {"HasAns": 1.0, "NoAns": 0.5}
    assert [row["given"] for row in score.rows[:2]] == [f"{questions[0].answers[0].text}.", ""]
    text = context.tokenizer.decode(asked[0])
    assert questions[0].context in text
    assert text.endswith(f"Question: {questions[0].question}\nAnswer:")
    assert context.items_dir is not None
    predictions = json.loads((context.items_dir / "squad2.predictions.json").read_text())
    assert official(gold_of(questions), predictions) == score.extra["official"]
    assert TASKS["squad2"].headline({"value": 0.75, **score.extra}) == "squad2 F1 75.0 (nothing: 50.0)"
    assert TASKS["squad2"].beside(score.extra)["F1 of NoAns"] == 0.5


def test_a_question_that_is_too_long_is_wrong_though_nothing_is_written(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = context.network
    monkeypatch.setattr(network, "config", dataclasses.replace(network.config, context=8))
    written(monkeypatch, lambda number: "")
    score = score_of("squad2", context, limit=6)
    assert (score.value, score.extra["too_long"]) == (0.0, 6)
    assert score.extra["official"]["f1"] == 0.0


def test_answered_questions_are_shown_first(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = written(monkeypatch, lambda number: "")
    score = score_of("squad2", context, shots=4)
    assert score.value == score.extra["baselines"]["no_answer"]
    text = context.tokenizer.decode(asked[0])
    said = [line.removeprefix("Answer: ") for line in text.splitlines() if line.startswith("Answer: ")]
    assert len(said) == 4
    assert [each == "unanswerable" for each in said] == [False, True, False, True]
    assert score.comparison_key["shots"] == 4
    with pytest.raises(InputError, match="too few"):
        score_of("squad2", context, shots=90)


def test_a_real_network_writes_and_the_suite_holds_it(context: Context) -> None:
    score = score_of("squad2", context, limit=3, new_tokens=4)
    again = score_of("squad2", context, limit=3, new_tokens=4)
    assert [row["completion"] for row in score.rows] == [row["completion"] for row in again.rows]
    assert all("\n" not in row["completion"] for row in score.rows)
    names = suites()
    assert names["squad"] == ["squad2"]
    assert "squad2" in names["full"]
    task: Any = TASKS["squad2"]
    texts = list(task.texts(task.settings(name="squad2")))
    assert scored_questions()[0].context in texts
    assert len(texts) == 32  # a paragraph and a question each


def test_questions_that_stand_in_the_training_text_are_told_apart(
    context: Context, context_of: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose corpus is here: the value without what also stands there."""
    trained = dataclasses.replace(context, corpus_dir=context_of(None).corpus_dir)
    written(monkeypatch, lambda number: "")
    plain = score_of("squad2", trained, limit=6)
    assert [row["leaked"] for row in plain.rows] == [False] * 6
    assert plain.clean["clean_value"] == plain.value
    first = plain.rows[0]["id"]
    monkeypatch.setattr(module, "leaked_items", lambda items, _: {first} & set(items))
    cut = score_of("squad2", trained, limit=6)
    assert cut.clean["leaked_share"] == pytest.approx(1 / 6)
    assert cut.clean["clean_value"] == pytest.approx(sum(row["f1"] for row in cut.rows[1:]) / 5)


def test_what_counts_as_no_answer() -> None:
    said = ("unanswerable", " Unanswerable.", "", "  ", "unanswerable from the context")
    assert [module.answer_in(text) for text in said] == [""] * 5
    assert module.answer_in(" In 1066. ") == "In 1066."
