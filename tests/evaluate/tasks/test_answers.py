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

from lmforge.corpus.labelled import build_examples
from lmforge.evaluate import conversations
from lmforge.evaluate.conversations import nats_of, targets_of, written
from lmforge.evaluate.task import Context
from lmforge.evaluate.tasks import answers as module
from lmforge.evaluate.tasks.answers import AnswerSettings, Asked, held_out, with_answer
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.build import build_tokens
from lmforge.tokens.chat import render_conversation
from lmforge.tokens.shards import Shards
from tests.evaluate.conftest import CONTEXT, score_of, tiny_model


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


def asked_of(context: Context, **settings: Any) -> list[Asked]:
    assert context.recipe.finetune is not None
    given = AnswerSettings.model_validate({"name": "answers", **settings})
    return list(held_out(context, given, context.recipe.finetune))


def test_the_likeliest_label_is_taken(context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"text": f"it {n}", "label": "ab"[n % 2]} for n in range(60)]
    made = context("classify", lines)
    asked = asked_of(made)
    score = score_of("answers", made)
    assert score.items == len(asked)
    for row, each in zip(score.rows, asked, strict=True):
        nats = {}
        for label in "ab":
            rendered = render_conversation([*each.question, {"role": "assistant", "content": label}], made.tokenizer)
            ids = torch.tensor([*rendered.tokens, made.tokenizer.end_of_text])[None]
            counted = torch.tensor([*rendered.counted, rendered.counted[-1]])[None]  # the end counts as the last does
            targets = ids[:, 1:].where(counted[:, 1:], -1)
            nats[label] = float(token_nats(made.network, ids[:, :-1], targets).sum())
        assert row["predicted"] == min(nats, key=nats.__getitem__)
        assert row["correct"] == (row["predicted"] == each.answers[0])
    assert score.value == sum(row["correct"] for row in score.rows) / len(asked)
    assert score.extra["baselines"]["most_frequent_label"] >= 0.5
    monkeypatch.setattr(conversations, "BATCH_TOKENS", {"cpu": 1})  # one at a time
    assert [row["predicted"] for row in score_of("answers", made).rows] == [row["predicted"] for row in score.rows]


def test_likelihoods_do_not_depend_on_the_batch(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = context(
        "classify",
        [{"text": "word " * (n % 5), "label": "ab"[n % 2]} | {"text": f"{n} " + "on " * (n % 5)} for n in range(40)],
    )
    rendered = [
        render_conversation([*each.question, {"role": "assistant", "content": each.answers[0]}], made.tokenizer)
        for each in asked_of(made)
    ]
    together = nats_of(made, rendered, "x")
    monkeypatch.setattr(conversations, "BATCH_TOKENS", {"cpu": 1})
    assert nats_of(made, rendered, "x") == pytest.approx(together, rel=1e-5)


def test_what_does_not_fit_is_wrong(context: Callable[..., Context]) -> None:
    made = context("classify", [{"text": f"{n} " + "iron " * 40, "label": "ab"[n % 2]} for n in range(20)])
    score = score_of("answers", made)
    assert score.value == 0
    assert score.extra["too_long"] == score.items
    assert all(
        math.isinf(nats)
        for nats in nats_of(made, [render_conversation(each.question, made.tokenizer) for each in asked_of(made)], "x")
    )
    asked = asked_of(made)
    assert written(made, [each.question for each in asked]) == [None] * len(asked)


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
        lambda _context, questions: [
            "unanswerable" if int(turns[0]["content"].split("?")[0].split()[-1]) % 3 == 0 else "year 1066"
            for turns in questions
        ],
    )
    score = score_of("answers", made)
    assert score.value == 1
    assert score.extra["exact"] == 1
    assert set(score.extra["parts"]) == {"answerable", "unanswerable"}
    monkeypatch.setattr(module, "written", lambda _context, asked: ["in 1066"] * len(asked))
    score = score_of("answers", made)
    hard, easy = score.extra["parts"]["unanswerable"], score.extra["parts"]["answerable"]
    assert (hard["f1"], easy["f1"]) == (0, pytest.approx(2 / 3))
    assert score.low < score.value < score.high


def test_answers_of_a_chat(context: Callable[..., Context]) -> None:
    lines = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "ok"}]} for n in range(40)
    ]
    made = context("chat", lines)
    score = score_of("answers", made)
    assert score.value == pytest.approx(
        sum(row["bits"] for row in score.rows) / sum(row["bytes"] for row in score.rows)
    )
    assert not score.higher_is_better
    assert score.extra["written"]["items"] == min(64, score.items)
    assert all(len(made.tokenizer.encode(row["completion"])) <= CONTEXT // 4 for row in score.rows)


def test_a_run_that_was_not_fine_tuned(context_of: Callable[..., Context]) -> None:
    score = score_of("answers", context_of(tiny_model()))
    assert score.value is None
    assert score.not_applicable == "the recipe has no [finetune], so there are no examples"


@pytest.mark.parametrize("chat", [False, True], ids=["transcript", "chat tokens"])
def test_an_answer_is_scored_as_training_counts_it(base: Path, tmp_path: Path, chat: bool) -> None:
    """−ln p of each example is the training loss of its document, taken from the shards, mask and end of text and
    all."""
    lines = [{"text": f"thing {n}", "label": ["comp", "comp graphics"][n % 2]} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"base": "base", "task": "classify", "train": str(tmp_path / "train.jsonl")}
    settings = {"context": CONTEXT, "vocab_size": 275 if chat else 320, "chat": chat}
    recipe = Recipe.model_validate({"finetune": given, "tokens": settings, "corpus": {"sources": [], "holdout": 0.4}})
    build_examples(recipe, tmp_path / "corpus", lambda messages: 1)
    build_tokens(
        recipe,
        tmp_path / "corpus",
        tmp_path / "tokens",
        None if chat else Tokenizer.load(base / "tokens/tokenizer.json"),
    )
    tokenizer = Tokenizer.load(tmp_path / "tokens" / "tokenizer.json")
    model = GPT(GPTConfig(tokenizer.vocab_size, 64, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=32))
    model.initialise(3)
    made = Context(recipe, tmp_path / "corpus", tmp_path / "tokens", tokenizer, model.eval())
    shards, asked = Shards.open(tmp_path / "tokens", "test"), asked_of(made)
    rendered = [render_conversation(with_answer(each.question, each.answers[0]), tokenizer) for each in asked]
    nats = nats_of(made, rendered, "x")
    for (start, length, *_), value in list(zip(shards.documents.tolist(), nats, strict=True))[:-1]:
        ids = torch.from_numpy(shards.read(start, length + 1).astype("int64"))[None]
        counts = torch.from_numpy(shards.counts(start + 1, length))[None]
        with torch.no_grad():
            loss = float(model.loss(ids[:, :-1], ids[:, 1:].where(counts, -1)))
        assert value == pytest.approx(loss, rel=1e-4)
    for each in rendered:
        assert targets_of(each, tokenizer.end_of_text)[-1] == tokenizer.end_of_text


def test_a_label_that_begins_another_is_not_likelier_for_it(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is sure of what it learned: both labels begin alike, only the end tells them apart."""
    lines = [{"text": f"it {n}", "label": ["comp", "comp graphics"][n % 2]} for n in range(60)]
    made = context("classify", lines)
    made.model = GPT(GPTConfig(made.tokenizer.vocab_size, 96, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=32))
    right = {f"User: {each.question[0]['content']}\n": each.answers[0] for each in asked_of(made)}

    def sure(_model: Any, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nats = torch.zeros(tokens.shape)
        for row, (ids, wanted) in enumerate(zip(tokens.tolist(), targets.tolist(), strict=True)):
            text = made.tokenizer.decode(ids)
            label = next(label for question, label in right.items() if question in text)
            known = [*made.tokenizer.encode(f" {label}"), made.tokenizer.end_of_text]
            asked = [token for token in wanted if token >= 0]
            for place, (token, scored) in enumerate(zip(known, asked, strict=False)):
                nats[row, place] = 0.01 if token == scored else 9.0
        return nats

    monkeypatch.setattr(conversations, "token_nats", sure)
    score = score_of("answers", made)
    assert score.value == 1.0
    assert {row["predicted"] for row in score.rows} == {"comp", "comp graphics"}


def test_shots_and_a_file_of_its_own(context: Callable[..., Context], tmp_path: Path) -> None:
    made = context("classify", [{"text": f"it {n}", "label": "ab"[n % 2]} for n in range(60)])
    plain, shown = asked_of(made), asked_of(made, shots=2)
    assert [len(each.question) for each in plain] == [1] * len(plain)
    assert all([turn["role"] for turn in each.question] == ["user", "assistant"] * 2 + ["user"] for each in shown)
    assert [each.question[-1] for each in shown] == [each.question[-1] for each in plain]
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "new", "label": "b"}) + "\n")
    score = score_of("answers", made, data=str(tmp_path / "other.jsonl"))
    assert (score.items, score.rows[0]["label"]) == (1, "b")
    assert score_of("answers", made, limit=3).items == 3
