"""The words of OpenAI's API, one by one."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.formats.loaded import LoadedModel
from lmforge.serve.engine import Part, Token
from lmforge.serve.protocol import NEUTRAL, ApiError, Chat, CompletionRequest, Completions, token_name


def test_every_token_has_its_own_name(served: LoadedModel) -> None:
    """Two tokens of one name would overwrite each other in `top_logprobs`."""
    names = [token_name(served.tokenizer, token) for token in range(served.tokenizer.vocab_size)]
    assert len(set(names)) == len(names)
    assert names[0] == "<|endoftext|>"
    assert token_name(served.tokenizer, served.tokenizer.encode_bytes(b"\xe2\x82")[0]).startswith("bytes:\\xe2")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([], [])],
)
def test_the_four_kinds_of_prompt(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_unsupported_parameters_are_refused_unless_neutral(name: str) -> None:
    for off in NEUTRAL[name]:
        CompletionRequest.model_validate({name: off}).refuse_unsupported()
    with pytest.raises(ApiError) as caught:
        CompletionRequest.model_validate({name: "something else"}).refuse_unsupported()
    assert caught.value.body["error"]["param"] == name


def test_false_is_not_zero() -> None:
    with pytest.raises(ApiError):
        CompletionRequest.model_validate({"presence_penalty": False}).refuse_unsupported()
    CompletionRequest.model_validate({"presence_penalty": 0.0}).refuse_unsupported()


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(1, 3)), min_size=1, max_size=6))
def test_folded_chunks_are_the_joined_text(pieces: list[tuple[str, int]]) -> None:
    class Letters:
        special = MappingProxyType({"<|endoftext|>": 0})

        def token_bytes(self, token: int) -> bytes:
            return b"abc"[token - 1 : token]

    finishes = [None] * (len(pieces) - 1) + ["stop"]
    parts = [
        Part(text, (Token(id, -1.0, ((id, -1.0),), 0),), 1, finish)
        for (text, id), finish in zip(pieces, finishes, strict=True)
    ]
    joined = "".join(text for text, _ in pieces)

    whole, *rest = [Completions(Letters(), 1).choice(0, part, 5) for part in parts]
    for choice in rest:
        Completions(Letters(), 1).fold(whole, choice)
    assert (whole["text"], whole["finish_reason"]) == (joined, "stop")
    assert whole["logprobs"]["tokens"] == ["abc"[id - 1] for _, id in pieces]
    assert whole["logprobs"]["text_offset"] == [5] * len(pieces)

    chat = Chat(Letters(), True)
    answer = chat.open(0)
    for part in parts:
        chat.fold(answer, chat.choice(0, part, 0))
    assert answer["message"] == {"role": "assistant", "content": joined.lstrip(), "refusal": None}
    assert answer["finish_reason"] == "stop"
    assert [token["token"] for token in answer["logprobs"]["content"]] == ["abc"[id - 1] for _, id in pieces]
