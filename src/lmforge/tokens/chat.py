"""Conversations → tokens: the one renderer of training, evaluation and serving.

Where the vocabulary has chat tokens (`lmforge.tokens.bpe.CHAT_TOKENS`), a turn is its speaker, the words as they are,
and the end:

    <|endoftext|> <|system|>…<|end|> <|user|>…<|end|> <|assistant|> ──the model goes on──▶ …<|end|>

Where it has none (a model of plain text), a conversation is a transcript, its words without blanks around them:

    <|endoftext|> System: …⏎⏎User: …⏎⏎Assistant: ──the model goes on──▶ …⏎⏎User:

Words become tokens by `Tokenizer.encode`, which never gives a special token: "<|end|>" in a message is text. What the
model is to learn (`Rendered.counted`) is the assistant's words and their end: <|end|>, or in a transcript the beginning
of the next turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lmforge.errors import InputError
from lmforge.tokens.bpe import CHAT_TOKENS, Tokenizer

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "User"}
STOP = tuple(f"{gap}{speaker}:" for speaker in ("User", "System", "Assistant") for gap in ("\n\n", "\n"))
Messages = Sequence[Mapping[str, Any]]


class Rendered(NamedTuple):
    """The tokens of a conversation, end of text first, and which of them count in the loss (its end counts as its last
    token does)."""

    tokens: list[int]
    counted: list[bool]


def has_chat_tokens(tokenizer: Tokenizer) -> bool:
    """Whether conversations are rendered with chat tokens (else as a transcript)."""
    return CHAT_TOKENS[0] in tokenizer.special


def stop_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: the end of the text and, where there are chat tokens, the end of the turn or
    another's turn."""
    return tuple(tokenizer.special.values())


def render_chat(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a conversation up to where the assistant's next words go: what the model is asked with.

    A message is {"role", "content"}, the content a string or a list of OpenAI's {"type": "text", "text"} parts (joined
    as they are). When the last message is the assistant's own, the model goes on with it.

    Raises:
        InputError: no messages, or one whose role or content is not of that form (names its index).
    """
    return _render(messages, tokenizer, open_end=True).tokens


def render_conversation(messages: Messages, tokenizer: Tokenizer) -> Rendered:
    """A whole conversation as a document to learn from: `render_chat` of every prefix of it is the beginning of this.

    Raises:
        InputError: as `render_chat`.
    """
    return _render(messages, tokenizer, open_end=False)


def conversation_text(messages: Messages) -> str:
    """The words of a conversation as one text (its transcript), for what reads documents as text.

    Raises:
        InputError: as `render_chat`.
    """
    return "\n\n".join(f"{SPEAKERS[role]}: {words.strip()}".rstrip() for role, words in _turns(messages))


def _render(messages: Messages, tokenizer: Tokenizer, open_end: bool) -> Rendered:
    turns = _turns(messages)
    return (_with_tokens if has_chat_tokens(tokenizer) else _transcript)(turns, tokenizer, open_end)


def _with_tokens(turns: list[tuple[str, str]], tokenizer: Tokenizer, open_end: bool) -> Rendered:
    end = tokenizer.special["<|end|>"]
    tokens, counted = [tokenizer.end_of_text], [True]
    for number, (role, words) in enumerate(turns):
        body = tokenizer.encode(words)
        own = role == "assistant"
        goes_on = open_end and own and number == len(turns) - 1
        tokens += [tokenizer.special[f"<|{SPEAKERS[role].lower()}|>"], *body, *([] if goes_on else [end])]
        counted += [False, *[own] * (len(body) + (not goes_on))]
    if open_end and turns[-1][0] != "assistant":
        tokens.append(tokenizer.special["<|assistant|>"])
        counted.append(False)
    return Rendered(tokens, counted)


def _transcript(turns: list[tuple[str, str]], tokenizer: Tokenizer, open_end: bool) -> Rendered:
    """Encoded piece by piece where the tokenizer would part the words anyway: after each "Speaker:"."""
    tokens, counted = [tokenizer.end_of_text], [True]
    before = ""
    for number, (role, words) in enumerate(turns):
        head = tokenizer.encode(f"{before}{SPEAKERS[role]}:")
        tokens += head
        counted += [number > 0 and turns[number - 1][0] == "assistant"] * len(head)
        body = tokenizer.encode(f" {words.strip()}".rstrip())
        tokens += body
        counted += [role == "assistant"] * len(body)
        before = "\n\n"
    if open_end and turns[-1][0] != "assistant":
        head = tokenizer.encode(f"{before}Assistant:")
        tokens += head
        counted += [False] * len(head)
    return Rendered(tokens, counted)


def _turns(messages: Messages) -> list[tuple[str, str]]:
    """(role, words) of each message, checked."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('messages: empty; give at least one, such as {"role": "user", "content": "Hello"}')
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in SPEAKERS:
            raise InputError(f"messages[{number}].role: {role!r} is not a role; give one of {', '.join(SPEAKERS)}")
        turns.append((role, _words(message.get("content"), number)))
    return turns


def _words(content: object, number: int) -> str:
    """The words of one message."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InputError(
            f"messages[{number}].content: neither a string nor a list of text parts; give the message's text"
        )
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InputError(
                f"messages[{number}].content[{place}]: {kind!r} is not a text part; this model reads text alone"
            )
        texts.append(part["text"])
    return "".join(texts)
