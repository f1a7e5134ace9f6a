"""Beam search: one beam is greedy, many are exact, neighbours change nothing, the score is the model's own."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.generate.beam import Hypothesis, beam_search
from lmforge.generate.decode import Sampling, decode
from lmforge.model.gpt import GPT
from tests.model.test_gpt import PLAIN, SHAPES, network

PROMPTS = st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=12), min_size=1, max_size=4)


def logprob(model: GPT, prompt: list[int], tokens: list[int]) -> float:
    """By one full pass, without a cache."""
    with torch.no_grad():
        chances = torch.log_softmax(model(torch.tensor([[*prompt, *tokens]]))[0], -1)
    return sum(float(chances[len(prompt) - 1 + place, token]) for place, token in enumerate(tokens))


@settings(max_examples=15, deadline=None)
@given(PROMPTS)
def test_one_beam_is_greedy(prompts: list[list[int]]) -> None:
    model = network(PLAIN)
    greedy: list[list[int]] = [[] for _ in prompts]
    for step in decode(model, prompts, [Sampling(max_tokens=6, temperature=0, stop_ids=(7, 0))] * len(prompts)):
        for drawn in step:
            if drawn.finish != "stop":
                greedy[drawn.row].append(drawn.token)
    assert [found.tokens for found in beam_search(model, prompts, [6] * len(prompts), (7, 0), width=1)] == greedy


@pytest.mark.parametrize("config", SHAPES)
def test_the_score_is_the_models_own(config) -> None:
    model, prompts = network(config), [[3, 1, 4], [1, 5, 9, 2, 6]]
    for prompt, found in zip(prompts, beam_search(model, prompts, [7, 3], (0,), width=3), strict=True):
        ended = len(found.tokens) < (7 if prompt == prompts[0] else 3)
        assert found.logprob == pytest.approx(logprob(model, prompt, found.tokens + [0] * ended), abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(PROMPTS, st.integers(1, 5))
def test_neighbours_change_nothing(prompts: list[list[int]], width: int) -> None:
    model = network(PLAIN)
    limits = [3 + number for number in range(len(prompts))]
    together = beam_search(model, prompts, limits, (7,), width)
    alone = [
        beam_search(model, [prompt], [limit], (7,), width)[0] for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert [found.tokens for found in together] == [found.tokens for found in alone]


def test_wide_enough_is_exhaustive() -> None:
    """Every text of two tokens, with no end among them: the widest beam finds the best of all."""
    model, prompt = network(PLAIN), [3, 1, 4]
    with torch.no_grad():
        first = torch.log_softmax(model(torch.tensor([prompt]))[0, -1], -1)
        second = torch.log_softmax(model(torch.tensor([[*prompt, token] for token in range(len(first))]))[:, -1], -1)
    best = divmod(int((first[:, None] + second).argmax()), len(first))
    assert beam_search(model, [prompt], [2], (), width=len(first))[0].tokens == list(best)


def test_nothing_to_do() -> None:
    assert beam_search(network(PLAIN), [], [], (0,)) == []
    assert beam_search(network(PLAIN), [[1]], [0], (0,)) == [Hypothesis([], 0.0)]


def test_a_prompt_without_numbers_ends_no_other() -> None:
    model, prompts = network(dataclasses.replace(PLAIN, tied=False)), [[3, 1], [9, 49, 2], [4, 1, 5]]
    whole = beam_search(model, prompts, [4, 4, 4], (7,), 3)
    sampled = Sampling(max_tokens=4, temperature=0)
    with torch.no_grad():
        model.embed.weight[49] = float("nan")
    found = beam_search(model, prompts, [4, 4, 4], (7,), 3)
    assert (found[0].tokens, found[1].tokens, found[2].tokens) == (whole[0].tokens, [], whole[2].tokens)
    failed: list[int] = []
    steps = list(decode(model, prompts, [sampled] * 3, on_error=lambda row, _error: failed.append(row)))
    assert failed == [1]
    assert {drawn.row for step in steps for drawn in step} == {0, 2}
