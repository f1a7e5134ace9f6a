"""Texts written by a model: the same in any company, drawn alike again, stopped, noted, with a calculator's results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmforge.evaluate import writing as module
from lmforge.evaluate.task import Context
from lmforge.evaluate.writing import Writing, write
from lmforge.generate.decode import SampledToken, Sampling
from tests.evaluate.conftest import tiny_model

PROMPTS = ["def f(", "import ", "x = 1\n", "class A", "return "]


@pytest.fixture
def context(context_of: Callable[..., Context]) -> Context:
    return context_of(tiny_model(1))


def prompts_of(context: Context) -> list[list[int]]:
    return [context.tokenizer.encode_document(text) for text in PROMPTS]


def says(monkeypatch: pytest.MonkeyPatch, context: Context, texts: dict[str, str]) -> None:
    """The model goes on with these texts: {beginning of a prompt's text: what is written after it}."""

    def decode(
        _model: Any, rows: Sequence[Sequence[int]], samplings: list[Sampling], **_: Any
    ) -> Iterator[list[SampledToken]]:
        left = []
        for row in rows:
            text = context.tokenizer.decode(list(row))
            prompt = next(each for each in texts if each in text)
            left.append(context.tokenizer.encode(texts[prompt][len(text.partition(prompt)[2]) :]))
        live = [n for n, tokens in enumerate(left) if tokens]
        count = 0
        while live:
            count += 1
            step = [
                SampledToken(n, left[n].pop(0), 0.0, (), "length" if count >= samplings[n].max_tokens else None)
                for n in live
            ]
            yield step
            live = [drawn.row for drawn in step if not drawn.finish and left[drawn.row]]

    monkeypatch.setattr(module, "decode", decode)


def test_texts_do_not_depend_on_company(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, how = prompts_of(context), Writing(8, temperature=1.0, samples=2)
    together = write(context, prompts, how, "x")
    assert together == write(context, prompts, how, "x")
    assert write(context, prompts[::-1], how, "x") == together[::-1]
    monkeypatch.setattr(module, "BATCH_ROWS", 1)
    assert write(context, prompts, how, "x") == together
    assert any(first != second for first, second in together)
    greedy = write(context, prompts, Writing(8, samples=2), "x")
    assert all(first == second for first, second in greedy)


def test_what_was_noted_is_not_written_again(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context.items_dir, context.weights = tmp_path, "w"
    prompts, how = prompts_of(context), Writing(6)
    texts = write(context, prompts, how, "x")
    (log,) = tmp_path.iterdir()
    lines = log.read_text().splitlines()
    assert len(lines) == len(prompts)
    log.write_text("\n".join(lines[:3]) + "\n" + lines[3][:9])  # a kill in the middle of a line
    asked: list[int] = []
    real = module._group
    monkeypatch.setattr(
        module, "_group", lambda context, group, *rest: asked.extend([len(group)]) or real(context, group, *rest)
    )
    assert write(context, prompts, how, "x") == texts
    assert sum(asked) == 2
    context.weights = "other"
    write(context, prompts, how, "x")
    assert sum(asked) == 2 + len(prompts)


def test_texts_end_before_a_stop_and_within_the_context(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    length = context.network.config.context
    long = [1] * length
    (empty,), (some,) = write(context, [long, long[: length - 3]], Writing(9), "x")
    assert empty == ""
    assert len(context.tokenizer.encode(some)) <= 3 * 4
    says(monkeypatch, context, {"a": " one\nQuestion: two", "b": " three"})
    prompts = [context.tokenizer.encode_document(text) for text in "ab"]
    assert write(context, prompts, Writing(30, ("\nQuestion:",)), "x") == [[" one"], [" three"]]


def test_the_calculator_answers_open_calls(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    true = {"a": "<<3*4=12>>, <<12+1=13>>", "b": " none", "c": " <<1/0=5>>"}
    says(monkeypatch, context, true)
    prompts = [context.tokenizer.encode_document(text) for text in "abc"]
    assert write(context, prompts, Writing(99, calculator=True), "x") == [[text] for text in true.values()]
    # a model that calculates badly is put right, one that has no calculator is not
    wrong = {"a": " <<3*4=12>>99", "b": " none", "c": " <<2*5=17>>"}
    says(monkeypatch, context, wrong)
    assert write(context, prompts, Writing(99), "x")[2] == [" <<2*5=17>>"]
    texts = write(context, prompts, Writing(99, calculator=True), "x")
    assert texts[0] == [" <<3*4=12>>99"]
    assert texts[2][0].startswith(" <<2*5=10>>")
    assert json.dumps(texts)
