"""Rows continued in company: the same bits as alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lmforge.compress.quantize import quantize
from lmforge.generate.continuation import GROUP_ROWS, InvariantContinuation, rows_multiple, shortened
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT, GPTConfig

CONTEXT = 48
SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "grouped, odd widths": {"d_model": 72, "heads": 4, "kv_heads": 2, "d_ff": 100, "qk_norm": True},
    "window and sparse": {"attention": ("window", "sparse"), "window": 8, "stride": 4, "pool": 4},
    "learned positions": {"positions": "learned"},
    "experts": {"experts": 4, "experts_active": 2},
    "linear and lsh": {"attention": ("linear", "lsh")},
}


def network(**changes: Any) -> GPT:
    size = {"layers": 2, "d_model": 64, "heads": 2, "kv_heads": 2, "d_ff": 128}
    model = GPT(GPTConfig(**{"vocab_size": 300, "context": CONTEXT, **size, **changes}))
    model.initialise(3)
    return model.eval()


def requests(count: int) -> list[tuple[list[int], Sampling]]:
    rng = random.Random(0)
    made = []
    for _ in range(count):
        prompt = [rng.randrange(300) for _ in range(rng.randrange(1, 20))]
        room = CONTEXT - len(prompt)
        made.append((prompt, Sampling(max_tokens=rng.randrange(2, room), temperature=0, top_logprobs=2)))
    return made


def answers(model: GPT, chosen: dict[int, tuple[list[int], Sampling]], **options: Any) -> dict[int, list[Any]]:
    """The tokens of each request with their log-probabilities, bit for bit."""
    numbers, said = list(chosen), {number: [] for number in chosen}  # type: ignore[var-annotated]
    for step in decode(model, [p for p, _ in chosen.values()], [s for _, s in chosen.values()], **options):
        for drawn in step:
            said[numbers[drawn.row]].append((drawn.token, drawn.logprob.hex(), drawn.top))
    return said


def companies(count: int) -> Iterator[list[int]]:
    rng = random.Random(1)
    order = rng.sample(range(count), count)
    while order:
        size = rng.choice((2, 3, 5, 8, 16))
        yield order[:size]
        order = order[size:]


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_the_same_bits_alone_and_in_company(shape: str, kind: str) -> None:
    model = network(**SHAPES[shape])
    model = quantize(model)[0] if kind == "int8" else model
    count = 36 if shape == "full" else 12
    asked = dict(enumerate(requests(count)))
    alone = {number: answers(model, {number: asked[number]}, batch_invariant=True)[number] for number in asked}
    for company in companies(count):
        together = answers(model, {number: asked[number] for number in company}, batch_invariant=True)
        assert together == {number: alone[number] for number in company}


def test_rows_that_fill_the_context_go_on_the_same_in_company() -> None:
    model = network()
    long = ([1, 2, 3], Sampling(max_tokens=2 * CONTEXT, temperature=0))
    other = ([4] * 30, Sampling(max_tokens=2 * CONTEXT, temperature=1.0, seed=1))
    alone = [answers(model, {0: each}, batch_invariant=True)[0] for each in (long, other)]
    assert [*answers(model, {0: long, 1: other}, batch_invariant=True).values()] == alone
    assert [len(each) for each in alone] == [2 * CONTEXT] * 2


def test_both_ways_of_continuing_agree_but_for_rounding() -> None:
    model = network(**SHAPES["window and sparse"])
    for number, request in enumerate(requests(6)):
        plain, exact = (answers(model, {0: request}, batch_invariant=way)[0] for way in (False, True))
        assert [token for token, _, _ in plain] == [token for token, _, _ in exact], number
        for (_, first, _), (_, second, _) in zip(plain, exact, strict=True):
            assert float.fromhex(first) == pytest.approx(float.fromhex(second), abs=1e-4)


def test_more_rows_than_a_group_are_continued() -> None:
    model = network()
    histories = {row: [row, 1, 2] for row in range(GROUP_ROWS + 5)}
    rows = InvariantContinuation(model, histories, CONTEXT)
    assert set(rows.logits()) == set(histories)
    left = {row: [*history, 7] for row, history in histories.items() if row % 3 == 0}
    rows.advance(left)
    logits = rows.logits()
    assert set(logits) == set(left)
    with torch.inference_mode():
        for row, history in left.items():
            torch.testing.assert_close(logits[row], model(torch.tensor([history]))[0, -1], atol=1e-4, rtol=1e-4)


def test_an_int8_model_needs_no_filling_and_what_cannot_be_shared_goes_row_by_row() -> None:
    assert rows_multiple(quantize(network())[0]) == 1
    assert rows_multiple(network()) in (1, 2, 4, 8, 16)
    assert rows_multiple(network(**SHAPES["experts"])) is None
    assert rows_multiple(network(**SHAPES["linear and lsh"])) is None


def test_a_row_is_shortened_to_half_a_context_once_it_no_longer_fits() -> None:
    assert shortened([1] * 8, 8) == [1] * 8
    assert shortened([*range(9)], 8) == [5, 6, 7, 8]
