"""The words of OpenAI's API: what a request may say, and the shapes of answers, log-probabilities and errors.

https://platform.openai.com/docs/api-reference (completions, chat, errors). A parameter that this server does not honour
is refused by name unless it is given with the value that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from lmforge.serve.engine import Part, Token

MAX_CHOICES = 128
Neutral = dict[str, tuple[Any, ...]]
NEUTRAL: Neutral = {  # parameters that are not supported, and the values of them that ask for nothing
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None, {}),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "best_of": (None, 1),
}
# parameters that say something about the caller and ask for nothing
NOTES = frozenset({"metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
MAX_STOP_CHARS = 1024  # of one stop string: each is looked for at every token


class ApiError(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        type_: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        message, param = _writable(message), param and _writable(param)  # both may repeat what the client sent
        self.body = {"error": {"message": message, "type": type_, "param": param, "code": code}}


def _writable(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON can say and UTF-8 cannot, as `?`."""
    return text.encode("utf-8", "replace").decode()


class StreamOptions(BaseModel):
    """What a stream carries beside the text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool | None = None
    include_obfuscation: Literal[False] | None = None  # padding of chunks against eavesdroppers


StrictNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Parameters(BaseModel):
    """What both kinds of request may say."""

    model_config = ConfigDict(extra="allow")  # `refuse_unsupported` judges the rest, with OpenAI's words

    model: StrictStr | None = None  # the one served, when left out
    temperature: Annotated[StrictNumber, Field(ge=0, le=2)] | None = None  # tiny ones take the likeliest token
    top_p: Annotated[StrictNumber, Field(ge=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None  # as at vLLM: 0 and −1 keep every token
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StrictStr | Annotated[list[StrictStr], Field(max_length=16)] | None = None
    seed: StrictInt | None = None  # of any size, taken modulo 2^64
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None

    def refuse_unsupported(self) -> None:
        """Raise ApiError 400 for a parameter that would have to change the answer, but cannot here."""
        for name, value in (self.model_extra or {}).items():
            if name in NOTES or (name == "best_of" and value == self.n and not isinstance(value, bool)):
                continue
            if name not in NEUTRAL:
                raise ApiError(400, f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
            # 0 == False and 1 == True in Python, but not in JSON.
            if not any(value == off and (isinstance(value, bool) == isinstance(off, bool)) for off in NEUTRAL[name]):
                raise ApiError(
                    400, f"'{name}' is not supported by this server; leave it out", name, "unsupported_parameter"
                )
        if any(len(text) > MAX_STOP_CHARS for text in self.stops):
            raise ApiError(
                400,
                f"Invalid value for 'stop': a text of more than {MAX_STOP_CHARS} characters",
                "stop",
                "invalid_value",
            )
        if self.usage_wanted and not self.stream:
            raise ApiError(400, "'stream_options' is only allowed when 'stream' is true", "stream_options")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, empty ones left out."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionRequest(Parameters):
    """POST /v1/completions."""

    prompt: StrictStr | list[StrictStr] | list[StrictInt] | list[list[StrictInt]] | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=5)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt: text, or token ids."""
        if self.prompt is None or isinstance(self.prompt, str):
            return [self.prompt or ""]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt if isinstance(token, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]


class TextPart(BaseModel):
    """A piece of a message."""

    type: Literal["text"]
    text: StrictStr


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart] | None = None
    # what this server cannot give a model to read; an empty one says nothing
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])


class ChatRequest(Parameters):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class Vocabulary(Protocol):
    """What is needed to show a token."""

    special: Mapping[str, int]

    def token_bytes(self, token: int) -> bytes:
        """The bytes one token stands for (none for a special token)."""


def token_name(vocabulary: Vocabulary, token: int) -> str:
    """A token as text; bytes that are no UTF-8 on their own as OpenAI writes them (`bytes:\\xe2\\x82`)."""
    raw = vocabulary.token_bytes(token)
    if not raw:
        return next((name for name, special in vocabulary.special.items() if special == token), f"<|{token}|>")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class Completions:
    """The shapes of /v1/completions."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, vocabulary: Vocabulary, logprobs: int | None) -> None:
        self.vocabulary, self.logprobs = vocabulary, logprobs

    def open(self, index: int) -> dict[str, Any] | None:
        """The chunk that begins a choice: none here."""
        return None

    def choice(self, index: int, part: Part, shift: int) -> dict[str, Any]:
        """A part as a choice; `shift` characters of echoed prompt stand before the answer."""
        return {
            "index": index,
            "text": part.text,
            "logprobs": self._logprobs(part.tokens, shift),
            "finish_reason": part.finish,
        }

    def _logprobs(self, tokens: Sequence[Token], shift: int) -> dict[str, Any] | None:
        if self.logprobs is None:
            return None
        return {
            "tokens": [token_name(self.vocabulary, token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [None if token.logprob is None else self._top(token) for token in tokens],
            "text_offset": [shift + token.offset for token in tokens],
        }

    def _top(self, token: Token) -> dict[str, float | None]:
        """The likeliest tokens and, as OpenAI does, the one that stands there."""
        named: dict[str, float | None] = {token_name(self.vocabulary, other): logprob for other, logprob in token.top}
        return named | {token_name(self.vocabulary, token.id): token.logprob}

    def fold(self, into: dict[str, Any], choice: dict[str, Any]) -> None:
        """Append a streamed choice to the whole one."""
        into["text"] += choice["text"]
        into["finish_reason"] = choice["finish_reason"] or into["finish_reason"]
        for name, values in (choice["logprobs"] or {}).items():
            into["logprobs"][name] += values


class Chat:
    """The shapes of /v1/chat/completions."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, vocabulary: Vocabulary, logprobs: bool, trims: bool = True) -> None:
        self.vocabulary, self.logprobs, self.trims = vocabulary, logprobs, trims
        self.begun: set[int] = set()

    def open(self, index: int) -> dict[str, Any] | None:
        """The chunk that begins a choice: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(()), "finish_reason": None}

    def choice(self, index: int, part: Part, shift: int) -> dict[str, Any]:
        """A part as a choice. `trims`: the blank between the speaker's name and the words of a transcript is left
        out."""
        text = part.text if index in self.begun or not self.trims else part.text.lstrip()
        if text:
            self.begun.add(index)
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(part.tokens), "finish_reason": part.finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            {**self._one(t.id, t.logprob), "top_logprobs": [self._one(*other) for other in t.top]} for t in tokens
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = list(self.vocabulary.token_bytes(token))
        return {"token": token_name(self.vocabulary, token), "logprob": logprob, "bytes": raw}

    def fold(self, into: dict[str, Any], choice: dict[str, Any]) -> None:
        """Append a streamed choice to the whole one, whose `delta` becomes `message`."""
        if "message" not in into:
            into["message"] = {**into.pop("delta"), "refusal": None}
        into["message"]["content"] += choice["delta"].get("content", "")
        into["finish_reason"] = choice["finish_reason"] or into["finish_reason"]
        if choice["logprobs"] is not None:
            into["logprobs"]["content"] += choice["logprobs"]["content"]
