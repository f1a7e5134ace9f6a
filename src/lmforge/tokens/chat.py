"""Conversations → tokens, for models that know text and no chat tokens: a plain transcript.

    System: …

    User: …

    Assistant:

The model goes on after the last line; one of `STOP` in what it writes means that it has begun the other side's turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmforge.errors import InputError
from lmforge.tokens.bpe import Tokenizer

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
STOP = tuple(f"{gap}{speaker}:" for speaker in ("User", "System", "Assistant") for gap in ("\n\n", "\n"))


def render_chat(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a conversation, beginning with the end-of-text token and ending where the assistant's next words go.

    A message is {"role", "content"}, the content a string or a list of OpenAI's {"type": "text", "text"} parts (joined as they are).
    When the last message is the assistant's own, the model goes on with it.

    Raises:
        InputError: no messages, or one whose role or content is not of that form (names its index).
    """
    return [tokenizer.end_of_text, *tokenizer.encode(transcript(messages))]


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of a conversation; see `render_chat`."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('messages: empty; give at least one, such as {"role": "user", "content": "Hello"}')
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in SPEAKERS:
            raise InputError(f"messages[{number}].role: {role!r} is not a role; give one of {', '.join(SPEAKERS)}")
        turns.append(f"{SPEAKERS[role]}: {_text(message.get('content'), number)}".rstrip())
    if messages[-1]["role"] != "assistant":
        turns.append("Assistant:")
    return "\n\n".join(turns)


def _text(content: object, number: int) -> str:
    """The words of one message, without blanks around them."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, Sequence):
        raise InputError(f"messages[{number}].content: neither a string nor a list of text parts; give the message's text")
    texts = []
    for place, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InputError(f"messages[{number}].content[{place}]: {kind!r} is not a text part; this model reads text alone")
        texts.append(part["text"])
    return "".join(texts).strip()
