"""The server as the real `openai` client sees it."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from lmforge.formats.loaded import LoadedModel
from lmforge.generate.decode import Sampling
from lmforge.serve.api import MAX_BODY_BYTES, chunks, plan_completion
from lmforge.serve.engine import QUEUE_ROWS, Engine, Ticket, prompt_scores
from lmforge.serve.protocol import CompletionRequest, token_name
from lmforge.serve.terminal import generate_text
from tests.serve.conftest import CONTEXT, sse

MODEL = "tiny"
TALK: list[Any] = [{"role": "user", "content": "the cat"}]


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": MODEL, "prompt": "def f", "max_tokens": 12, **options})


def talk(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": TALK, "max_tokens": 12, **options})


def test_models_and_health(client: openai.OpenAI, base_url: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    card = client.models.retrieve(MODEL)
    assert (card.id, card.owned_by) == (MODEL, "lmforge")
    assert card.model_extra is not None
    assert card.model_extra["max_model_len"] == CONTEXT
    assert httpx.get(f"{base_url}/health").json()["status"] == "ok"


def test_a_completion_is_what_the_decoding_loop_says(client: openai.OpenAI, served: LoadedModel) -> None:
    answer = complete(client, temperature=0.9, seed=11)
    expected = generate_text(served, "def f", Sampling(max_tokens=12, temperature=0.9, seed=11))
    assert answer.choices[0].text == expected["text"]
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.usage.prompt_tokens == len(served.tokenizer.encode("def f"))
    assert answer.usage.completion_tokens == 12 == expected["tokens"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 4}, {"seed": 4, "temperature": 1.5, "top_p": 0.8}])
def test_streamed_and_whole_completions_are_equal(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = complete(client, max_tokens=30, logprobs=2, **options)
    chunks = list(
        complete(client, max_tokens=30, logprobs=2, stream=True, stream_options={"include_usage": True}, **options)
    )
    assert len(chunks) > 5
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert [t for chunk in chunks for choice in chunk.choices for t in choice.logprobs.tokens] == whole.choices[
        0
    ].logprobs.tokens
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 4}])
def test_streamed_and_whole_chats_are_equal(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = talk(client, max_tokens=30, **options)
    chunks = list(talk(client, max_tokens=30, stream=True, **options))
    assert whole.choices[0].message.role == chunks[0].choices[0].delta.role == "assistant"
    assert whole.object == "chat.completion"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content != ""
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


def test_a_chat_reads_the_rendered_conversation(client: openai.OpenAI, served: LoadedModel) -> None:
    several = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "the cat"}]},
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat"}]
    first, second = talk(client, messages=several, temperature=0), talk(client, messages=plain, temperature=0)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage.prompt_tokens == len(served.conversation(plain))


def test_the_stream_ends_with_done(base_url: str) -> None:
    body = {
        "model": MODEL,
        "prompt": "a",
        "max_tokens": 3,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = httpx.post(f"{base_url}/v1/completions", json=body)
    events = sse(reply.text)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    assert events.count("[DONE]") == 1
    assert all(event["usage"] is None for event in events[:-2] if isinstance(event, dict))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_the_text(client: openai.OpenAI, stream: bool) -> None:
    text = complete(client, max_tokens=40, seed=1).choices[0].text
    stop = text[10:12]
    answer = complete(client, max_tokens=40, seed=1, stop=["never written", stop], logprobs=0, stream=stream)
    pieces = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert "".join(piece.text for piece in pieces) == text.split(stop)[0]
    assert pieces[-1].finish_reason == "stop"
    offsets = [offset for piece in pieces for offset in piece.logprobs.text_offset]
    assert all(offset < len(text.split(stop)[0]) for offset in offsets), "a token beyond the cut was told"


def test_several_prompts_and_choices(client: openai.OpenAI, served: LoadedModel) -> None:
    answer = complete(client, prompt=["def f", "the cat"], n=2, seed=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == complete(client, prompt="def f", seed=8).choices[0].text
    assert texts[2] == complete(client, prompt="the cat", seed=8).choices[0].text
    assert texts[0] != texts[1]
    assert answer.usage.completion_tokens == 48
    assert answer.usage.prompt_tokens == len(served.tokenizer.encode("def f")) + len(served.tokenizer.encode("the cat"))
    ids = [served.document("def f"), served.document("the cat")]
    assert [choice.text for choice in complete(client, prompt=ids, seed=8).choices] == [texts[0], texts[2]]
    assert complete(client, prompt=ids[0], seed=8).choices[0].text == texts[0]
    assert len(talk(client, n=3, seed=8).choices) == 3


def test_completion_logprobs(client: openai.OpenAI, served: LoadedModel) -> None:
    choice = complete(client, seed=2, logprobs=3, echo=False).choices[0]
    logprobs = choice.logprobs
    assert (
        len(logprobs.tokens)
        == len(logprobs.token_logprobs)
        == len(logprobs.top_logprobs)
        == len(logprobs.text_offset)
        == 12
    )
    for token, own, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert 3 <= len(top) <= 4
        assert top[token] == own <= max(top.values()) < 0
    ids = [*served.document("def f")]
    drawn = [
        id
        for name in logprobs.tokens
        for id in range(served.tokenizer.vocab_size)
        if token_name(served.tokenizer, id) == name
    ]
    expected = prompt_scores(served.model, served.tokenizer, [*ids, *drawn], len(ids), 0)
    assert logprobs.token_logprobs == pytest.approx([score.logprob for score in expected], abs=1e-4)


def test_echo_scores_the_prompt_as_harnesses_ask_for_it(client: openai.OpenAI, served: LoadedModel) -> None:
    text = "the naïve 猫 sat"
    ids = served.document(text)
    expected = [score.logprob for score in prompt_scores(served.model, served.tokenizer, ids, 1, 0)]
    scored = complete(client, prompt=text, echo=True, logprobs=1, max_tokens=0)
    assert scored.choices[0].text == text
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(expected, abs=1e-5)
    assert scored.usage.completion_tokens == 0
    given = complete(client, prompt=ids[1:], echo=True, logprobs=0, max_tokens=2, temperature=0)
    assert given.choices[0].text.startswith(text)
    assert given.choices[0].logprobs.token_logprobs[0] is None
    assert len(given.choices[0].logprobs.tokens) == given.usage.total_tokens == len(ids) - 1 + 2
    assert given.choices[0].logprobs.text_offset[-2] >= len(text)
    plain = complete(client, prompt=text, echo=True, max_tokens=2, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in plain).startswith(text)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    for stream in (False, True):
        answer = talk(client, seed=2, logprobs=True, top_logprobs=2, stream=stream)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        content = [token for choice in choices for token in choice.logprobs.content]
        assert len(content) == 12
        for token in content:
            assert len(token.top_logprobs) == 2
            assert token.logprob <= token.top_logprobs[0].logprob < 0
            assert math.isfinite(token.logprob)
            assert bytes(token.bytes).decode("utf-8", "replace") == token.token or token.token.startswith(
                ("bytes:", "<|")
            )
    assert talk(client, seed=2).choices[0].logprobs is None


def test_defaults_keep_to_openai(client: openai.OpenAI, served: LoadedModel) -> None:
    assert client.completions.create(model=MODEL, prompt="a", seed=1).usage.completion_tokens <= 16  # type: ignore[union-attr]
    rest = client.chat.completions.create(model=MODEL, messages=TALK, temperature=0)
    assert rest.usage is not None
    assert rest.usage.total_tokens <= CONTEXT
    assert complete(client, prompt="", max_tokens=2).usage.prompt_tokens == 0
    assert talk(client, max_tokens=openai.omit, max_completion_tokens=4, seed=1).usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"extra_body": {"top_k": -2}}, "top_k", "invalid_value"),
        ({"stop": "a" * 2000}, "stop", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", None),
        ({"prompt": [[]]}, "prompt", None),
        ({"prompt": [10**6]}, "prompt", None),
        ({"prompt": ["a"] * 100, "n": 100}, "n", None),
        ({"prompt": "the cat " * CONTEXT}, "prompt", "context_length_exceeded"),
        ({"max_tokens": CONTEXT}, "prompt", "context_length_exceeded"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"frequency_penalty": -1}, "frequency_penalty", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 9}, "logprobs", "invalid_value"),
        ({"extra_body": {"temprature": 1}}, "temprature", "unknown_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ],
)
def test_bad_requests_name_the_parameter(
    client: openai.OpenAI, options: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **options)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "the cat " * CONTEXT}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_completion_tokens": 3}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_bad_chats_name_the_parameter(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk(client, **options)
    assert caught.value.param == param


def test_neutral_values_of_unsupported_parameters_are_taken(client: openai.OpenAI) -> None:
    plain = complete(client, seed=3).choices[0].text
    neutral = complete(
        client, seed=3, presence_penalty=0, frequency_penalty=0, best_of=1, logit_bias={}, user="someone", top_p=1
    )
    assert neutral.choices[0].text == plain
    assert complete(client, seed=3, top_p=0).choices[0].text == complete(client, temperature=0).choices[0].text


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for ask in (
        lambda: complete(client, model="other"),
        lambda: talk(client, model="other"),
        lambda: client.models.retrieve("other"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"prompt": ', "JSON"),
        (b"[1]", "object"),
        (b'"\xff"', ""),
        (b'{"\\ud800": 1}', ""),
        (b'{"n": "\\ud800"}', "'n'"),
        (b'{"temperature": NaN}', "temperature"),
        (b"[" * 100_000, ""),
        (b"", ""),
    ],
)
def test_a_malformed_body_is_a_400_in_openais_shape(base_url: str, body: bytes, words: str) -> None:
    reply = httpx.post(f"{base_url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert_openai_error(reply, words)


@pytest.mark.parametrize(
    ("method", "url", "content", "status", "words"),
    [
        ("POST", "/v1/completions", {"data": {"prompt": "a"}}, 400, "application/json"),
        ("POST", "/v1/chat/completions", {"json": {}}, 400, "messages"),
        ("GET", "/v1/completions", {}, 405, "Not allowed"),
        ("GET", "/v1/nothing", {}, 404, "Invalid URL"),
    ],
)
def test_every_error_has_openais_shape(
    base_url: str, method: str, url: str, content: dict[str, Any], status: int, words: str
) -> None:
    reply = httpx.request(method, base_url + url, **content)
    assert reply.status_code == status
    assert_openai_error(reply, words)


def test_half_a_surrogate_pair_is_read_as_the_replacement_character(base_url: str) -> None:
    def post(body: bytes) -> httpx.Response:
        return httpx.post(f"{base_url}/v1/completions", content=body, headers={"Content-Type": "application/json"})

    reply = post(b'{"prompt": "a \\ud800", "echo": true, "max_tokens": 0, "stop": "\\ud800"}')
    assert reply.json()["choices"][0]["text"] == "a \ufffd"
    unknown = post(b'{"model": "\\ud800", "prompt": "a"}')
    assert unknown.status_code == 404
    assert_openai_error(unknown, "does not exist")


def assert_openai_error(reply: httpx.Response, words: str) -> None:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]


def test_concurrent_requests_say_what_they_say_alone(client: openai.OpenAI) -> None:
    def ask(number: int) -> tuple[str, str]:
        options: dict[str, Any] = {"seed": number, "max_tokens": 5 + 4 * number, "temperature": (0, 1)[number % 2]}
        text = complete(client, prompt="the cat " * (number + 1), **options).choices[0].text
        return text, "".join(chunk.choices[0].delta.content or "" for chunk in talk(client, stream=True, **options))

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == alone


def test_a_client_that_leaves_does_not_break_the_next(client: openai.OpenAI) -> None:
    expected = complete(client, seed=5).choices[0].text
    for _ in range(3):
        stream = complete(client, stream=True, max_tokens=CONTEXT - 10, seed=5)
        next(iter(stream))
        stream.close()
        assert complete(client, seed=5).choices[0].text == expected


def test_leaving_a_stream_cancels_its_rows(served: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets: list[Ticket] = []
    submit = Engine.submit

    def keeping(engine: Engine, *arguments: Any) -> Ticket:
        tickets.append(submit(engine, *arguments))
        return tickets[-1]

    async def leave_after(items: int) -> None:
        with Engine(served.model, served.tokenizer) as engine:
            stream = chunks(engine, plan_completion(served, CompletionRequest(prompt="a", max_tokens=9)), MODEL, "")
            for _ in range(items):
                await anext(stream)
            assert not tickets[-1].cancelled
            await stream.aclose()
        assert tickets[-1].cancelled

    monkeypatch.setattr(Engine, "submit", keeping)
    for items in (1, 3):
        asyncio.run(leave_after(items))


def test_a_full_queue_answers_503(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    # let one request more than the queue holds through
    monkeypatch.setattr("lmforge.serve.api.QUEUE_ROWS", QUEUE_ROWS + 1)
    with pytest.raises(openai.InternalServerError) as caught:
        complete(client, prompt=["a"] * (QUEUE_ROWS + 1))
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_model_answers_500_and_goes_on(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr("lmforge.serve.engine.decode", fail)
        with pytest.raises(openai.APIError) as caught:
            list(complete(client, stream=stream))
        assert caught.value.code == "internal_error"
    assert complete(client, seed=1).choices[0].text


def test_an_enormous_body_is_refused_before_it_is_read(base_url: str) -> None:
    body = b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}'
    reply = httpx.post(f"{base_url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 413
    assert_openai_error(reply, "")
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/none"])
def test_head_is_answered_wherever_get_is(base_url: str, path: str) -> None:
    get, head = httpx.get(base_url + path), httpx.head(base_url + path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", {"POST"}),
        ("PUT", "/v1/chat/completions", {"POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("DELETE", "/", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/models", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_allowed_says_which_are(base_url: str, method: str, path: str, allowed: set[str]) -> None:
    reply = httpx.request(method, base_url + path)
    assert reply.status_code == 405
    assert {name.strip() for name in reply.headers["allow"].split(",")} == allowed
    assert_openai_error(reply, "Not allowed")


NEUTRAL_EVERYWHERE = {
    "logit_bias": {},
    "n": 1,
    "user": "someone",
    "store": False,
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "stream": False,
    "stream_options": None,
    "stop": None,
    "seed": None,
    "top_p": 1,
    "temperature": 0,
}
NEUTRAL_IN_CHATS = {
    "function_call": "none",
    "functions": [],
    "tool_choice": "auto",
    "tools": [],
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "reasoning_effort": None,
    "verbosity": None,
    "audio": None,
    "prediction": None,
    "web_search_options": None,
    "logprobs": False,
    "top_logprobs": 0,
    "max_completion_tokens": None,
    "safety_identifier": "x",
    "prompt_cache_key": "x",
}


def test_what_asks_for_nothing_is_accepted(base_url: str) -> None:
    """All at once and, null, one by one."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "the cat", "tool_calls": None}], "max_tokens": 3}
    for path, plain, neutral in (
        ("completions", {"prompt": "def f", "max_tokens": 3}, NEUTRAL_EVERYWHERE),
        ("chat/completions", chat, NEUTRAL_EVERYWHERE | NEUTRAL_IN_CHATS),
    ):
        for extra in (neutral, *({name: None} for name in neutral if name != "stream")):
            reply = httpx.post(f"{base_url}/v1/{path}", json=plain | extra)
            assert reply.status_code == 200, (extra, reply.text)


@pytest.mark.parametrize(
    "asked",
    [
        {"function_call": {"name": "f"}},
        {"tool_choice": "required"},
        {"service_tier": "priority"},
        {"store": True},
        {"modalities": ["text", "audio"]},
        {"reasoning_effort": "high"},
        {"logit_bias": {"5": 1}},
    ],
)
def test_what_is_asked_for_and_missing_is_refused(client: openai.OpenAI, asked: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        talk(client, **asked)
    assert caught.value.param == next(iter(asked))
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize("words", ["One, two, ", "  One,", "One\n"])
def test_an_answer_that_was_begun_goes_on_as_it_stands(client: openai.OpenAI, served: LoadedModel, words: str) -> None:
    """With the blanks that it has, and those of its continuation."""
    begun = [*TALK, {"role": "assistant", "content": words}]
    prompt = served.conversation(begun)
    assert served.tokenizer.decode(prompt).endswith(words)
    for seed in range(8):
        answer = talk(client, messages=begun, seed=seed, max_tokens=4)
        plain = complete(client, prompt=prompt, seed=seed, max_tokens=4, stop=list(served.chat_stop))
        assert answer.choices[0].message.content == plain.choices[0].text


def test_other_sites_get_no_leave_to_read(base_url: str) -> None:
    reply = httpx.get(f"{base_url}/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert not any(name.startswith("access-control") for name in reply.headers)
