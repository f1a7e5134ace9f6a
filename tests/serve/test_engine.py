"""The engine: fair, bounded, cancellable, and the same text whoever shares the batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import lmforge.generate.decode as decoding
from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import SampledToken, Sampling, decode, stream_text
from lmforge.serve.api import plan_completion
from lmforge.serve.engine import Engine, Overloaded, Part, Row, Ticket, prompt_scores, text_offsets
from lmforge.serve.protocol import ApiError, CompletionRequest


class Ear:
    """A listener that keeps what it hears; `gate` may hold the engine's thread after an event."""

    def __init__(self, rows: int = 1, gate: Callable[[], object] = lambda: None) -> None:
        self.events: list[tuple[int, Part | Exception]] = []
        self.left, self.gate = rows, gate
        self.first, self.ended = threading.Event(), threading.Event()

    def __call__(self, index: int, event: Part | Exception) -> None:
        self.events.append((index, event))
        self.left -= isinstance(event, Exception) or event.finish is not None
        if not self.left:
            self.ended.set()
        self.first.set()
        self.gate()

    def text(self, index: int = 0) -> str:
        return "".join(
            event.text for i, event in self.events if i == index and isinstance(event, Part) and not event.prompt
        )


def row(served: LoadedModel, text: str, **sampling: object) -> Row:
    return Row(tuple(served.document(text)), Sampling(**{"max_tokens": 12, "temperature": 1.0, "seed": 5, **sampling}))  # type: ignore[arg-type]


def alone(served: LoadedModel, row: Row) -> str:
    return "".join(
        piece.text for piece in stream_text(served.model, served.tokenizer, row.prompt, row.sampling, row.stop)
    )


def test_a_row_says_the_same_in_any_company(served: LoadedModel) -> None:
    rows = [
        row(served, "the cat " * n, seed=n, max_tokens=6 + 3 * n, temperature=(0.0, 1.0)[n % 2]) for n in range(1, 9)
    ]
    ear = Ear(len(rows))
    with Engine(served.model, served.tokenizer) as engine:
        engine.submit(rows, ear)
        assert ear.ended.wait(60)
    assert [ear.text(i) for i in range(len(rows))] == [alone(served, one) for one in rows]


def test_a_batch_larger_than_one_step_is_answered_whole(served: LoadedModel) -> None:
    rows = [row(served, "def f", seed=n, max_tokens=3) for n in range(7)]
    ear = Ear(len(rows))
    with Engine(served.model, served.tokenizer, batch_rows=3) as engine:
        engine.submit(rows, ear)
        assert ear.ended.wait(60)
    assert [ear.text(i) for i in range(7)] == [alone(served, one) for one in rows]


def test_requests_take_turns(served: LoadedModel) -> None:
    """A request of one prompt does not wait for all of an earlier request with many."""
    opened, order = threading.Event(), []
    with Engine(served.model, served.tokenizer, batch_rows=1) as engine:
        first = Ear(1, gate=opened.wait)
        engine.submit([row(served, "a", max_tokens=1)], first)
        assert first.first.wait(60)
        many, one = Ear(4, gate=lambda: order.append("many")), Ear(1, gate=lambda: order.append("one"))
        engine.submit([row(served, "b", max_tokens=1)] * 4, many)
        engine.submit([row(served, "c", max_tokens=1)], one)
        opened.set()
        assert many.ended.wait(60)
        assert one.ended.wait(60)
    assert order.index("one") <= 1


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room(served: LoadedModel) -> None:
    opened = threading.Event()
    with Engine(served.model, served.tokenizer, batch_rows=1, queue_rows=2) as engine:
        first = Ear(1, gate=opened.wait)
        engine.submit([row(served, "a", max_tokens=1)], first)
        assert first.first.wait(60)
        waiting = engine.submit([row(served, "b")] * 2, Ear(2))
        with pytest.raises(Overloaded, match="2 prompts wait"):
            engine.submit([row(served, "c")], Ear())
        waiting.cancel()
        last = Ear()
        engine.submit([row(served, "c")], last)
        opened.set()
        assert last.ended.wait(60)
    assert last.text() == alone(served, row(served, "c"))


def test_cancelling_ends_a_row_early_and_silently(served: LoadedModel) -> None:
    """The row's tokens stop being drawn: the next request is answered although the first had asked for a very long
    text."""
    tickets: list[Ticket] = []
    submitted = threading.Event()

    def cancel_after_the_first_part() -> None:
        assert submitted.wait(60)
        tickets[0].cancel()

    long = Ear(gate=cancel_after_the_first_part)
    after = Ear()
    with Engine(served.model, served.tokenizer) as engine:
        tickets.append(engine.submit([row(served, "a", max_tokens=10**9, stop_ids=())], long))
        submitted.set()
        assert long.first.wait(60)
        engine.submit([row(served, "b")], after)
        assert after.ended.wait(60)
    assert len(long.events) == 1
    assert not long.ended.is_set()


def test_a_row_that_ended_does_not_hold_its_batch(served: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop string ends one row while the other goes on; both are right, and no more is drawn for the first."""
    drawn = [0, 0]

    def counting(*arguments: Any, **options: Any) -> Iterator[list[SampledToken]]:
        for step in decode(*arguments, **options):
            for one in step:
                drawn[one.row] += 1
            yield step

    monkeypatch.setattr("lmforge.serve.engine.decode", counting)
    plain = row(served, "the", seed=1, max_tokens=40)
    stop = alone(served, plain)[4:6]
    stopped = Row(plain.prompt, plain.sampling, (stop,))
    ear = Ear(2)
    with Engine(served.model, served.tokenizer) as engine:
        engine.submit([stopped, plain], ear)
        assert ear.ended.wait(60)
    assert ear.text(0) == alone(served, plain).split(stop)[0]
    assert ear.text(1) == alone(served, plain)
    assert drawn[0] <= [event.drawn for i, event in ear.events if i == 0 and isinstance(event, Part)][-1] + 1
    assert drawn[1] == 40
    assert [event.finish for i, event in ear.events if i == 0 and isinstance(event, Part)][-1] == "stop"


def test_a_failing_batch_is_told_and_the_engine_goes_on(served: LoadedModel) -> None:
    bad, good = Ear(), Ear()
    with Engine(served.model, served.tokenizer) as engine:
        engine.submit([Row((10**6,), Sampling(max_tokens=2))], bad)
        assert bad.ended.wait(60)
        engine.submit([row(served, "a")], good)
        assert good.ended.wait(60)
    assert isinstance(bad.events[0][1], Exception)
    assert good.text() == alone(served, row(served, "a"))


def test_a_row_that_fails_fails_alone(served: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """At reading its prompt, at scoring it, at drawing, and at being told."""
    plain = row(served, "the cat", max_tokens=9)
    failing = {
        "prompt": Row((10**6,), Sampling(max_tokens=4)),
        "score": Row((1, 10**6), Sampling(max_tokens=4), score_from=1),
        "draw": row(served, "draw", temperature=0.5, top_k=3),
        "add": Row(tuple(served.document("add")), Sampling(max_tokens=4), stop=("stop", 3)),  # type: ignore[arg-type]
    }
    draw = decoding._draw

    def failing_draw(number: int, logits: torch.Tensor, sampling: Sampling, *rest: Any) -> SampledToken:
        if sampling.top_k == 3:
            raise RuntimeError("probability tensor contains nan")
        return draw(number, logits, sampling, *rest)

    monkeypatch.setattr(decoding, "_draw", failing_draw)
    for bad in failing.values():
        ear = Ear(4)
        with Engine(served.model, served.tokenizer) as engine:
            engine.submit([plain, bad, plain, row(served, "a", seed=2)], ear)
            assert ear.ended.wait(60)
        assert [isinstance(event, Exception) for i, event in ear.events if i == 1][-1]
        assert ear.text(0) == ear.text(2) == alone(served, plain)
        assert ear.text(3) == alone(served, row(served, "a", seed=2))


EXTREMES = [0, -1, 1, 2**63, 2**64, 10**40, -(10**40), 1e-40, 5e-324, 1e308, float("nan"), float("inf"), True, None]


def numbers(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(usual, usual, st.sampled_from(EXTREMES), st.integers(), st.floats())


@settings(max_examples=60, deadline=None)
@given(
    hostile=st.fixed_dictionaries(
        {},
        optional={
            "temperature": numbers(st.floats(0, 2)),
            "top_p": numbers(st.floats(0, 1)),
            "top_k": numbers(st.integers(-1, 400)),
            "min_p": numbers(st.just(0)),
            "presence_penalty": numbers(st.just(0)),
            "frequency_penalty": numbers(st.just(0.0)),
            "repetition_penalty": numbers(st.just(1)),
            "seed": numbers(st.integers()),
            "max_tokens": numbers(st.integers(0, 20)),
            "n": numbers(st.integers(1, 3)),
            "best_of": numbers(st.just(1)),
            "logprobs": numbers(st.integers(0, 5)),
            "logit_bias": st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
            "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=3), st.just("a" * 9999)),
            "echo": st.booleans(),
        },
    )
)
def test_no_sampling_parameter_of_one_request_touches_another(served: LoadedModel, hostile: dict[str, Any]) -> None:
    """Whatever one asks for is refused at the door with a 400, or answered; the plain one beside it hears what it hears
    alone."""
    plain = row(served, "the cat", max_tokens=6, top_logprobs=1)
    try:
        request = CompletionRequest.model_validate({"prompt": "def f", **hostile})
        beside = plan_completion(served, request).rows[:15]
    except (ValidationError, ApiError) as refused:
        status = getattr(refused, "status", 400)
        event(f"refused with {status}")
        if status != 400:
            raise
        return
    event("answered")
    ear, quiet = Ear(len(beside) + 1), Ear()
    with Engine(served.model, served.tokenizer) as engine:
        engine.submit([plain, *beside], ear)
        assert ear.ended.wait(60)
        engine.submit([plain], quiet)
        assert quiet.ended.wait(60)
    assert [part for i, part in ear.events if i == 0] == [part for _, part in quiet.events]
    assert not [part for _, part in ear.events if isinstance(part, Exception)]


def test_tiny_temperatures_take_the_likeliest_and_seeds_count_modulo_2_64(served: LoadedModel) -> None:
    greedy = alone(served, row(served, "the cat", temperature=0.0))
    for temperature in (5e-324, 1e-40, 1e-9):
        assert alone(served, row(served, "the cat", temperature=temperature)) == greedy
    for seed in (2**64 + 5, 5 - 2**64, 10**40):
        assert alone(served, row(served, "the cat", seed=seed)) == alone(
            served, row(served, "the cat", seed=seed % 2**64)
        )


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_the_engine_decodes_as_it_was_told(
    served: LoadedModel, monkeypatch: pytest.MonkeyPatch, batch_invariant: bool
) -> None:
    asked: list[bool] = []

    def noting(*arguments: Any, **options: Any) -> Iterator[list[SampledToken]]:
        asked.append(options["batch_invariant"])
        return decode(*arguments, **options)

    monkeypatch.setattr("lmforge.serve.engine.decode", noting)
    ear = Ear()
    with Engine(served.model, served.tokenizer, batch_invariant=batch_invariant) as engine:
        engine.submit([row(served, "a")], ear)
        assert ear.ended.wait(60)
    assert asked == [batch_invariant]


def test_closing_tells_those_who_wait(served: LoadedModel) -> None:
    opened = threading.Event()
    running, waiting = Ear(gate=opened.wait), Ear()
    engine = Engine(served.model, served.tokenizer, batch_rows=1)
    engine.submit([row(served, "a", max_tokens=10**9, stop_ids=())], running)
    assert running.first.wait(60)
    engine.submit([row(served, "b")], waiting)
    closer = threading.Thread(target=engine.close)
    closer.start()
    opened.set()
    closer.join(60)
    assert not closer.is_alive()
    assert isinstance(running.events[-1][1], Overloaded)
    assert isinstance(waiting.events[-1][1], Overloaded)
    with pytest.raises(Overloaded):
        engine.submit([row(served, "c")], Ear())


def test_prompt_scores_are_the_models_own(served: LoadedModel) -> None:
    ids = served.document("def fibonacci(n):\n    return")
    scores = prompt_scores(served.model, served.tokenizer, ids, 1, 3)
    with torch.inference_mode():
        log_p = served.model(torch.tensor([ids]))[0].log_softmax(-1)
    assert [score.id for score in scores] == ids[1:]
    expected = [float(log_p[i, token]) for i, token in enumerate(ids[1:])]
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-5)
    assert all(
        score.top == tuple(sorted(score.top, key=lambda pair: -pair[1])) and len(score.top) == 3 for score in scores
    )
    whole = prompt_scores(served.model, served.tokenizer, ids, 0, 0)
    assert whole[0].logprob is None
    assert len(whole) == len(ids)


def test_decoding_and_scoring_agree(served: LoadedModel) -> None:
    """The log-probability told when a token is drawn is the one that scoring the finished text gives."""
    asked = row(served, "the cat", max_tokens=10, seed=2)
    ear = Ear()
    with Engine(served.model, served.tokenizer) as engine:
        engine.submit([asked], ear)
        assert ear.ended.wait(60)
    tokens = [token for _, event in ear.events if isinstance(event, Part) for token in event.tokens]
    assert len(tokens) == 10
    scores = prompt_scores(
        served.model, served.tokenizer, [*asked.prompt, *(token.id for token in tokens)], len(asked.prompt), 0
    )
    assert [token.logprob for token in tokens] == pytest.approx([score.logprob for score in scores], abs=1e-4)
    assert [token.offset for token in tokens] == [score.offset for score in scores]


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=40))
def test_offsets_fall_on_the_text(served: LoadedModel, data: bytes) -> None:
    """Each offset is the length of what the tokens before it certainly spell."""
    ids = served.tokenizer.encode_bytes(data)
    offsets = text_offsets(served.tokenizer, ids)
    assert offsets == sorted(offsets)
    assert all(0 <= offset <= len(served.tokenizer.decode(ids)) for offset in offsets)
    text = data.decode("utf-8", "ignore")
    clean = served.tokenizer.encode(text)
    for token, offset in zip(clean, text_offsets(served.tokenizer, clean), strict=True):
        piece = served.tokenizer.token_bytes(token)
        if piece.decode("utf-8", "ignore").encode() == piece:
            assert text[offset:].startswith(piece.decode())
