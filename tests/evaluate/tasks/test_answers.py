"""Answers scored: measures against worked examples, likelihoods that do not depend on the batch, what does not fit
counted as wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from lmforge.corpus.labelled import build_examples
from lmforge.evaluate import answers as module
from lmforge.evaluate.answers import answers, held_out, matthews, nats_of, normalised, word_f1, written
from lmforge.evaluate.task import Context
from lmforge.generate.score import token_nats
from lmforge.recipe import Recipe
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.chat import render_conversation
from tests.evaluate.conftest import CONTEXT, tiny_model


def test_words_in_common() -> None:
    assert normalised("The  Quick, brown fox!") == "quick brown fox"
    assert word_f1("the cat sat", "a cat") == pytest.approx(2 / 3)
    assert (word_f1("", ""), word_f1("", "cat"), word_f1("cat", "dog"), word_f1("cat", "Cat.")) == (1, 0, 0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
def test_matthews_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    true, found = ([pair[place] for pair in pairs] for place in (0, 1))
    assert matthews(true, found) == pytest.approx(matthews_corrcoef(true, found), abs=1e-9)


@pytest.fixture
def context(base: Path, tmp_path: Path) -> Callable[..., Context]:
    """A context over examples of a task, with an untrained model of 32 tokens."""

    def make(task: str, lines: list[Any], **keys: Any) -> Context:
        for name in ("train", "test"):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        given = {"base": "base", "task": task, "train": str(tmp_path / "train.jsonl"), "long": "skip", **keys}
        recipe = Recipe.model_validate(
            {"finetune": given, "tokens": {"context": 1000}, "corpus": {"sources": [], "holdout": 0.4}}
        )
        build_examples(recipe, tmp_path / "corpus", lambda messages: 1)
        return Context(
            recipe,
            tmp_path / "corpus",
            base / "tokens",
            Tokenizer.load(base / "tokens" / "tokenizer.json"),
            tiny_model(),
        )

    return make


def test_the_likeliest_label_is_taken(context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"text": f"it {n}", "label": "ab"[n % 2]} for n in range(60)]
    made = context("classify", lines)
    asked = list(held_out(made))
    score = answers(made)
    assert score.items == len(asked)
    for row, each in zip(score.rows, asked, strict=True):
        nats = {}
        for label in "ab":
            rendered = render_conversation([*each.question, {"role": "assistant", "content": label}], made.tokenizer)
            ids = torch.tensor(rendered.tokens)[None]
            targets = ids[:, 1:].where(torch.tensor(rendered.counted)[None, 1:], -1)
            nats[label] = float(token_nats(made.network, ids[:, :-1], targets).sum())
        assert row["predicted"] == min(nats, key=nats.__getitem__)
        assert row["correct"] == (row["predicted"] == each.answers[0])
    assert score.value == sum(row["correct"] for row in score.rows) / len(asked)
    assert score.extra["baselines"]["most_frequent_label"] >= 0.5
    monkeypatch.setattr(module, "BATCH_TOKENS", {"cpu": 1})  # one at a time
    assert [row["predicted"] for row in answers(made).rows] == [row["predicted"] for row in score.rows]


def test_likelihoods_do_not_depend_on_the_batch(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = context(
        "classify",
        [{"text": "word " * (n % 5), "label": "ab"[n % 2]} | {"text": f"{n} " + "on " * (n % 5)} for n in range(40)],
    )
    rendered = [
        render_conversation([*each.question, {"role": "assistant", "content": each.answers[0]}], made.tokenizer)
        for each in held_out(made)
    ]
    together = nats_of(made, rendered, "x")
    monkeypatch.setattr(module, "BATCH_TOKENS", {"cpu": 1})
    assert nats_of(made, rendered, "x") == pytest.approx(together, rel=1e-5)


def test_what_does_not_fit_is_wrong(context: Callable[..., Context]) -> None:
    made = context("classify", [{"text": f"{n} " + "iron " * 40, "label": "ab"[n % 2]} for n in range(20)])
    score = answers(made)
    assert score.value == 0
    assert score.extra["too_long"] == score.items
    assert all(
        math.isinf(nats)
        for nats in nats_of(made, [render_conversation(each.question, made.tokenizer) for each in held_out(made)], "x")
    )
    asked = list(held_out(made))
    assert written(made, asked) == [None] * len(asked)


def test_spans_are_compared_with_the_nearest_answer(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ["1066", "the year 1066"]
    made = context(
        "span",
        [{"question": f"{n}?", "context": "in the year 1066", "answers": right if n % 3 else []} for n in range(60)],
    )
    monkeypatch.setattr(
        module,
        "written",
        lambda _context, asked: ["year 1066" if len(each.answers) == 2 else "unanswerable" for each in asked],
    )
    score = answers(made)
    assert score.value == 1
    assert score.extra["exact"] == 1
    assert set(score.extra["parts"]) == {"answerable", "unanswerable"}
    monkeypatch.setattr(module, "written", lambda _context, asked: ["in 1066"] * len(asked))
    score = answers(made)
    hard, easy = score.extra["parts"]["unanswerable"], score.extra["parts"]["answerable"]
    assert (hard["f1"], easy["f1"]) == (0, pytest.approx(2 / 3))
    assert score.low < score.value < score.high


def test_answers_of_a_chat(context: Callable[..., Context]) -> None:
    lines = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "ok"}]} for n in range(40)
    ]
    made = context("chat", lines)
    score = answers(made)
    assert score.value == pytest.approx(
        sum(row["bits"] for row in score.rows) / sum(row["bytes"] for row in score.rows)
    )
    assert not score.higher_is_better
    assert score.extra["written"]["items"] == min(64, score.items)
    assert all(len(made.tokenizer.encode(row["completion"])) <= CONTEXT // 4 for row in score.rows)


def test_a_run_that_was_not_fine_tuned(context_of: Callable[..., Context]) -> None:
    score = answers(context_of(tiny_model()))
    assert score.value is None
    assert score.not_applicable == "the recipe has no [finetune], so there are no examples"
