"""Conversations → tokens: the one renderer of training, evaluation and serving.

Where the vocabulary has chat tokens (`CHAT_TOKENS` of lmforge.tokens.special_tokens), a turn is its speaker, the words
as they are, and the end:

    <|endoftext|> <|system|>…<|end|> <|user|>…<|end|> <|assistant|> ──the model goes on──▶ …<|end|>

Where a model came with a chat template of its own (lmforge.tokens.template), that is what is rendered, as its makers
trained it: nothing is put before what it writes, so that no BOS stands there twice.

Where it has none (a model of plain text), a conversation is a transcript, its words without blanks around them:

    <|endoftext|> System: …⏎⏎User: …⏎⏎Assistant: ──the model goes on──▶ …⏎⏎User:

Words never become a special token: "<|end|>" in a message is text. What the model is to learn (`Rendered.counted`) is
the assistant's words and their end: <|end|>, in a transcript the beginning of the next turn, and by a template what
stands in its generation blocks or what each of the assistant's turns adds, up to the last token that ends a turn. A
message of the assistant with `"weight": 0` is read and not learned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmforge.corpus.sources.conversation import is_learned
from lmforge.errors import InputError
from lmforge.tokens.library import secret_name
from lmforge.tokens.pretokenize import without_surrogates
from lmforge.tokens.special_tokens import CHAT_TOKENS
from lmforge.tokens.template import CLOSE_SAID, OPEN_SAID, render, render_text
from lmforge.tokens.tokenizer import Tokenizer

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "User"}
STOP = tuple(f"{gap}{speaker}:" for speaker in ("User", "System", "Assistant") for gap in ("\n\n", "\n"))
Messages = Sequence[Mapping[str, Any]]


GUARD = "\ufdd4"  # a noncharacter that parts the names of special tokens in messages while a template is rendered
_NONCHARACTERS = re.compile("[\ufdd0-\ufdd4]")


class Rendered(NamedTuple):
    """The tokens of a conversation, and which of them count in the loss (the first is given and stays True)."""

    tokens: list[int]
    counted: list[bool]


class _Turn(NamedTuple):
    """One message, and whether its words are to be learned."""

    role: str
    words: str
    learned: bool


def has_chat_tokens(tokenizer: Tokenizer) -> bool:
    """Whether special tokens end the turns of conversations (else they are written as a transcript)."""
    return tokenizer.chat_template is not None or all(name in tokenizer.special for name in CHAT_TOKENS)


def stop_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: the end of the text and, where there are chat tokens, the end of the turn or
    another's turn."""
    return tokenizer.special_tokens.stop


def end_counts(rendered: Rendered, tokenizer: Tokenizer) -> bool:
    """Whether the end of the text after a conversation counts: as its last token does, but not after the end of a turn
    by a template, which ends the answer already."""
    ended = tokenizer.chat_template is not None and rendered.tokens[-1] in tokenizer.special_tokens.stop
    return rendered.counted[-1] and not ended


def render_chat(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a conversation up to where the assistant's next words go: what the model is asked with.

    A message is {"role", "content"}, the content a string or a list of OpenAI's {"type": "text", "text"} parts (joined
    as they are). When the last message is the assistant's own, the model goes on with it as it stands, blanks included.

    Raises:
        InputError: no messages, or one whose role or content is not of that form (names its index).
    """
    return _render(messages, tokenizer, open_end=True).tokens


def render_conversation(messages: Messages, tokenizer: Tokenizer) -> Rendered:
    """A whole conversation as a document to learn from: `render_chat` of every prefix of it is the beginning of this
    (but for blanks around words that the model is to go on with: a transcript has none).

    Raises:
        InputError: as `render_chat`.
    """
    return _render(messages, tokenizer, open_end=False)


def conversation_text(messages: Messages) -> str:
    """The words of a conversation as one text (its transcript), for what reads documents as text.

    Raises:
        InputError: as `render_chat`.
    """
    return "\n\n".join(f"{SPEAKERS[role]}: {words.strip()}".rstrip() for role, words, _ in _turns(messages))


def _render(messages: Messages, tokenizer: Tokenizer, open_end: bool) -> Rendered:
    if tokenizer.chat_template is not None:
        return _templated(messages, tokenizer, open_end)
    turns = _turns(messages)
    return (_with_tokens if has_chat_tokens(tokenizer) else _transcript)(turns, tokenizer, open_end)


def _templated(messages: Messages, tokenizer: Tokenizer, open_end: bool) -> Rendered:
    """By the model's own template; its library encodes the whole text at once, special tokens and all."""
    assert tokenizer.library is not None
    assert tokenizer.chat_template is not None
    whole = _whole(messages)
    special = tokenizer.special_tokens
    names = _template_names(tokenizer)
    longest_first = sorted((name for name in special.names if len(name) > 1), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    given = [_guarded(message, pattern) for message in whole]
    spoken = given != whole  # a message has the name of a special token: that is text
    said: list[tuple[int, int]] = []
    if open_end:
        text = _asked(tokenizer.chat_template, given, names)
    else:
        text, said = render_text(tokenizer.chat_template, given, names)
    if spoken:
        text, said = _renamed(text, said, pattern, special.names)
    tokens, places = tokenizer.library.marked_spans(text, renamed=spoken)
    if not tokens:
        raise InputError("chat template: it writes nothing for this conversation; import the model without it")
    counted = np.zeros(len(tokens), dtype=bool)
    for first, last in said:
        inside = np.flatnonzero((places[:, 0] < last) & (places[:, 1] > first))
        ends = [at for at in inside.tolist() if tokens[at] in special.stop]
        counted[inside[inside <= ends[-1]] if ends else inside] = True
    counted[0] = True
    return Rendered(tokens, counted.tolist())


def _template_names(tokenizer: Tokenizer) -> dict[str, str]:
    """What templates call special tokens."""
    special, library = tokenizer.special_tokens, tokenizer.library
    unknown = library.names[library.unknown] if library and library.unknown >= 0 else ""
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    return {**{name: special.name(token) for name, token in ids.items()}, "unk_token": unknown}


def _asked(template: str, messages: Messages, names: Mapping[str, str]) -> str:
    """The text up to where the assistant's next words go: after its own last ones, where the last message is its."""
    words = str(messages[-1]["content"])
    if messages[-1]["role"] != "assistant":
        return _plain(render(template, messages, names, ask=True))
    if not words.strip():
        return _plain(render(template, messages[:-1], names, ask=True))
    text = _plain(render(template, messages, names, ask=False))
    for last in (words, words.strip()):
        if (at := text.rfind(last)) >= 0:
            return text[:at] + words  # with the blanks around them, which templates take away
    raise InputError(
        "chat template: it does not write the assistant's last words as they are, so it cannot go on with them"
    )


def _plain(text: str) -> str:
    """Without the marks of generation blocks."""
    return text.replace(OPEN_SAID, "").replace(CLOSE_SAID, "")


def _whole(messages: Messages) -> list[dict[str, Any]]:
    """The messages as a template takes them: each content one string, other fields as they are."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('messages: empty; give at least one, such as {"role": "user", "content": "Hello"}')
    whole = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not role:
            raise InputError(f"messages[{number}].role: {role!r} is not a role; give one of {', '.join(SPEAKERS)}")
        content = message.get("content")
        words = "" if content is None and message.get("tool_calls") else _words(content, number)
        whole.append({**message, "content": _NONCHARACTERS.sub("\ufffd", without_surrogates(words))})
    return whole


def _guarded(value: Any, pattern: re.Pattern[str]) -> Any:
    """A message in which every name of a special token is parted by GUARD."""
    if isinstance(value, str):
        while name := pattern.search(value):
            value = value[: name.start() + 1] + GUARD + value[name.start() + 1 :]
        return value
    if isinstance(value, Mapping):
        return {key: _guarded(each, pattern) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_guarded(each, pattern) for each in value]
    return value


def _renamed(
    text: str, said: Sequence[tuple[int, int]], pattern: re.Pattern[str], ids: Mapping[str, int]
) -> tuple[str, list[tuple[int, int]]]:
    """A text whose special tokens, those that the template wrote, have names that no message can have; without
    guards. And the same spans in it."""
    parts, places, size, last = [], np.arange(len(text) + 1), 0, 0
    for each in re.finditer(f"{pattern.pattern}|{GUARD}", text):
        name = "" if each[0] == GUARD else secret_name(ids[each[0]])
        parts += [text[last : each.start()], name]
        size += each.start() - last + len(name)
        places[each.end() :] += size - places[each.end()]
        last = each.end()
    return "".join([*parts, text[last:]]), [(int(places[first]), int(places[stop])) for first, stop in said]


def _with_tokens(turns: list[_Turn], tokenizer: Tokenizer, open_end: bool) -> Rendered:
    end = tokenizer.special["<|end|>"]
    tokens, counted = [tokenizer.begin], [True]
    for number, (role, words, learned) in enumerate(turns):
        body = tokenizer.encode(words)
        goes_on = open_end and role == "assistant" and number == len(turns) - 1
        tokens += [tokenizer.special[f"<|{SPEAKERS[role].lower()}|>"], *body, *([] if goes_on else [end])]
        counted += [False, *[learned] * (len(body) + (not goes_on))]
    if open_end and turns[-1].role != "assistant":
        tokens.append(tokenizer.special["<|assistant|>"])
        counted.append(False)
    return Rendered(tokens, counted)


def _transcript(turns: list[_Turn], tokenizer: Tokenizer, open_end: bool) -> Rendered:
    """Encoded piece by piece where the tokenizer would part the words anyway: after each "Speaker:"."""
    tokens, counted = [tokenizer.begin], [True]
    before = ""
    for number, (role, words, learned) in enumerate(turns):
        head = tokenizer.encode(f"{before}{SPEAKERS[role]}:")
        tokens += head
        counted += [number > 0 and turns[number - 1].learned] * len(head)
        goes_on = open_end and role == "assistant" and number == len(turns) - 1 and words.strip()
        body = tokenizer.encode(f" {words}" if goes_on else f" {words.strip()}".rstrip())
        tokens += body
        counted += [learned] * len(body)
        before = "\n\n"
    if open_end and turns[-1].role != "assistant":
        head = tokenizer.encode(f"{before}Assistant:")
        tokens += head
        counted += [False] * len(head)
    return Rendered(tokens, counted)


def _turns(messages: Messages) -> list[_Turn]:
    """Each message, checked."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError('messages: empty; give at least one, such as {"role": "user", "content": "Hello"}')
    turns = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or role not in SPEAKERS:
            raise InputError(f"messages[{number}].role: {role!r} is not a role; give one of {', '.join(SPEAKERS)}")
        turns.append(_Turn(role, _words(message.get("content"), number), is_learned(message)))
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
