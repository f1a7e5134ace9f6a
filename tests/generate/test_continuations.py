"""Likelihoods of continuations: right, and to the last bit the same in any company, order and size of pass."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from lmforge.generate.continuations import Continuations, Option
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPTConfig
from tests.model.test_gpt import PLAIN, network

SMALL = dataclasses.replace(PLAIN, vocab_size=60, context=80)
KINDS = [
    SMALL,
    dataclasses.replace(SMALL, attention=("window", "full"), window=6),
    dataclasses.replace(SMALL, ngram_rows=32),
    dataclasses.replace(SMALL, experts=4, experts_active=2),
]


def items_of(count: int, seed: int = 0, begin: tuple[int, ...] = ()) -> list[list[Option]]:
    """Items with a beginning of their own and three continuations each."""
    rng = random.Random(seed)

    def drawn(low: int, high: int) -> list[int]:
        return [rng.randrange(60) for _ in range(rng.randint(low, high))]

    items = []
    for _ in range(count):
        before = [*begin, *drawn(2, 30)]
        items.append([(before, drawn(1, 6)) for _ in range(3)])
    return items


def alone(model: torch.nn.Module, before: list[int], after: list[int]) -> float:
    tokens = [*before, *after]
    targets = torch.tensor([[-1] * (len(before) - 1) + after])
    return -float(token_nats(model, torch.tensor([tokens[:-1]]), targets).double().sum())  # type: ignore[arg-type]


@pytest.mark.parametrize("config", KINDS, ids=["full", "window", "n-grams", "experts"])
def test_they_are_right_and_no_bit_depends_on_company(config: GPTConfig) -> None:
    model, items = network(config), items_of(9)
    whole = dict(Continuations(model).score(items))
    for (before, after), likelihood in zip(items[0], whole[0], strict=True):
        assert likelihood.log_p == pytest.approx(alone(model, list(before), list(after)), abs=1e-4)
    for pass_tokens in (1, 40):
        assert dict(Continuations(model, pass_tokens).score(items)) == whole
    turned = dict(Continuations(model).score(items[::-1]))
    assert [turned[len(items) - 1 - number] for number in range(len(items))] == [whole[n] for n in range(len(items))]


def test_a_common_beginning_is_read_once_and_changes_nothing_else() -> None:
    model = network(SMALL)
    scorer, items = Continuations(model), items_of(6, begin=tuple(range(40)))
    stem = scorer.common(items)
    assert stem[:40] == list(range(40))
    read: list[int] = []
    hidden = model.hidden
    model.hidden = lambda tokens, *a, **k: (read.append(tokens.shape[1]), hidden(tokens, *a, **k))[1]  # type: ignore[method-assign]
    with_stem, cost = dict(scorer.score(items)), sum(read)
    read.clear()
    without, full_cost = dict(scorer.score(items, [])), sum(read)
    assert cost < 0.6 * full_cost
    for number in range(6):
        for one, other in zip(with_stem[number], without[number], strict=True):
            assert one.log_p == pytest.approx(other.log_p, abs=1e-4)
    some = dict(scorer.score(items[2:4], stem))
    assert [some[0], some[1]] == [with_stem[2], with_stem[3]]  # the stem, not the company, decides the bits


def test_no_tokens_too_many_tokens_and_greedy() -> None:
    model = network(SMALL)
    rng = random.Random(1)
    long = [rng.randrange(60) for _ in range(100)]
    with torch.inference_mode():
        best = int(model(torch.tensor([[5, 6, 7]]))[0, -1].argmax())
    scores = dict(
        Continuations(model).score([[([1], []), (long, [3])], [([5, 6, 7], [best]), ([5, 6, 7], [best + 1])]])
    )
    assert (scores[0][0].log_p, scores[0][0].greedy, scores[0][0].cut) == (0.0, True, 0)
    assert scores[0][1].cut == 20
    (whole,) = next(Continuations(model).score([[([5], long)]]))[1]
    assert whole.cut == 20
    assert whole.log_p == pytest.approx(alone(model, [long[19]], long[20:]), abs=1e-3)
    assert scores[0][1].log_p == pytest.approx(alone(model, long[20:], [3]), abs=1e-4)
    assert [each.greedy for each in scores[1]] == [True, False]
