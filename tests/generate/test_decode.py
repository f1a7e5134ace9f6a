"""The decoding loop: greedy equals the argmax of full passes, rows do not disturb each other, text is never taken
back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.generate.decode import SampledToken, Sampling, TextAssembler, decode, stream_text
from tests.model.test_gpt import PLAIN, SHAPES, network

GREEDY = Sampling(max_tokens=6, temperature=0, stop_ids=())


class Letters:
    """Token t stands for byte t."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def continued(model, prompts, samplings):
    texts = [[] for _ in prompts]
    for step in decode(model, prompts, samplings):
        for drawn in step:
            texts[drawn.row].append(drawn.token)
    return texts


@pytest.mark.parametrize("config", SHAPES)
def test_greedy_equals_full_passes(config) -> None:
    model, history = network(config), [3, 1, 4, 1, 5]
    expected = list(history)
    with torch.no_grad():
        for _ in range(6):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert continued(model, [history], [GREEDY])[0] == expected[5:]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=30), min_size=2, max_size=5))
def test_rows_do_not_disturb_each_other(prompts) -> None:
    model = network(PLAIN)
    samplings = [
        Sampling(max_tokens=3 + i, temperature=1.0, top_k=5, seed=i, stop_ids=(7,)) for i in range(len(prompts))
    ]
    together = continued(model, prompts, samplings)
    alone = [continued(model, [p], [s])[0] for p, s in zip(prompts, samplings, strict=True)]
    assert together == alone


def test_text_goes_on_beyond_the_context() -> None:
    text = continued(network(PLAIN), [[1, 2, 3]], [Sampling(max_tokens=70, temperature=0, stop_ids=())])[0]
    assert len(text) == 70


def test_seeds_top_k_and_top_p() -> None:
    model = network(PLAIN)
    one, two = (
        continued(model, [[5]], [Sampling(max_tokens=10, temperature=1.5, seed=4, stop_ids=())])[0] for _ in range(2)
    )
    assert one == two
    narrow = [
        Sampling(max_tokens=10, temperature=3.0, top_k=1, stop_ids=()),
        Sampling(max_tokens=10, temperature=3.0, top_p=1e-6, stop_ids=()),
    ]
    greedy = continued(model, [[5]], [Sampling(max_tokens=10, temperature=0, stop_ids=())])[0]
    assert continued(model, [[5], [5]], narrow) == [greedy, greedy]


def test_why_a_row_ends_and_its_probabilities() -> None:
    model = network(PLAIN)
    steps = [
        drawn
        for (drawn,) in decode(model, [[1, 2]], [Sampling(max_tokens=3, temperature=0, stop_ids=(), top_logprobs=2)])
    ]
    assert [d.finish for d in steps] == [None, None, "length"]
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)
    assert steps[0].logprob == pytest.approx(float(expected.max()), abs=1e-5)
    assert steps[0].top[0] == (steps[0].token, pytest.approx(steps[0].logprob))
    stop = continued(model, [[1, 2]], [Sampling(max_tokens=9, temperature=0, stop_ids=(steps[0].token,))])
    assert stop == [[steps[0].token]]
    assert list(decode(model, [[1]], [Sampling(max_tokens=0)])) == []


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1), ("top_p", 0), ("top_p", 1.5), ("top_k", -1), ("max_tokens", -1)]
)
def test_ranges(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        Sampling(**{field: value})


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        list(decode(network(PLAIN), [[]], [GREEDY]))


@given(st.binary(max_size=40), st.lists(st.text("ab\né", min_size=1, max_size=3), max_size=2))
def test_assembled_text_is_the_whole_text_cut_at_the_first_stop(data: bytes, stop: list[str]) -> None:
    assembler, text = TextAssembler(Letters(), stop), ""
    for index, byte in enumerate(data):
        piece, finish = assembler.add(SampledToken(0, byte, 0.0, finish="length" if index + 1 == len(data) else None))
        text += piece
        if finish:
            break
    whole = data.decode(errors="replace")
    cuts = [whole.find(s) for s in stop if s in whole]
    if not cuts:
        assert text == whole
    else:
        assert text == whole[: min(cuts)]


def test_streamed_pieces() -> None:
    pieces = list(stream_text(network(PLAIN), Letters(), [1, 2], GREEDY))
    assert pieces[-1].finish == "length"
    assert sum(len(piece.drawn) for piece in pieces) == 6
    assert [p.finish for p in stream_text(network(PLAIN), Letters(), [1], Sampling(max_tokens=0))] == ["length"]
