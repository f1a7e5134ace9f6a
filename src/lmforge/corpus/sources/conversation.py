"""Conversations in the shapes people publish them in → messages of {"role", "content"}, so that answers are learned as
answers.

    messages       [{"role", "content"}]                OpenAI, UltraChat, the Hub's chat sets; Anthropic's parts
    contents       [{"role", "parts"}]                  Gemini
    conversation   [{"human", "assistant"}]             Firefly, MOSS
    conversations  [{"from", "value"}]                  ShareGPT
    instruction, input, output                          Alpaca
    prompt, completion · prompt, response · question, answer · …    pairs; either side may itself be messages

A tool's call is written into the content of the message that makes it, as Hermes and Qwen models read it:
<tool_call>{"name": …, "arguments": …}</tool_call>; what the tool says is a message of role "tool".

A message of the assistant that is not to be learned has `"weight": 0`, as OpenAI's and Mistral's fine-tuning formats
say it (Axolotl: `"train": false`), and keeps it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]  # role and content, strings; of what is not learned also weight, 0

# fields that hold a list of messages, in the order in which they are looked for
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
# others, looked for where a record is a conversation by nothing else: a preferred answer with its question, UltraChat's
# raw form (strings in turn), a copy of ShareGPT, Gemini
_OTHER_LISTS = ("chosen", "data", "items", "contents")
# (fields before the answer, its field): the first of which a record has both
_PAIRS = (
    ("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "response"),
    ("question", "answer"), ("question", "response"), ("query", "response"), ("query", "answer"),
    ("instruction", "completion"), ("instruction", "answer"), ("prompt", "answer"), ("prompt", "chosen"),
    ("user", "assistant"), ("human", "assistant"), ("input", "output"), ("inputs", "targets"), ("input", "target"),
    ("problem", "solution"),
)  # fmt: skip
# in small letters, with a capital, or all of them
PAIRS = tuple(
    (spelt(question), spelt(answer)) for spelt in (str, str.capitalize, str.upper) for question, answer in _PAIRS
)
SYSTEM = ("system", "system_prompt")
ADDED = ("input", "context")  # what an instruction is about, below it
_ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user", "client": "user", "customer": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "chatbot": "assistant",
    "model": "assistant", "ai": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant",
    "agent": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
}  # fmt: skip
_ROLE_FIELDS, _CONTENT_FIELDS = ("role", "from", "speaker"), ("content", "value", "text", "message", "parts")
_TURNS = (("human", "assistant"), ("user", "assistant"), ("human", "bot"))  # within a list


class NotMessages(Exception):
    """What is no list of messages; the message of the error names the place and the form."""


def conversation_of(record: Mapping[str, Any], text_field: str) -> list[Message] | None:
    """The conversation that a record holds, where its text field names one, or it has none and is of a known shape;
    else None.

    Raises:
        NotMessages: a message that is not of its form (names its index).
    """
    value = unfolded(record.get(text_field)) if text_field in LISTS else record.get(text_field)
    if isinstance(value, list) and _in_turn(value) and text_field not in (*LISTS, *_OTHER_LISTS):
        raise NotMessages(f"{text_field} is a list of strings; join them, or name it as one of {', '.join(LISTS)}")
    if isinstance(value, list) or (value is None and text_field in LISTS and text_field in record):
        return _with_system(record, messages_of(value or [], text_field))
    if text_field in record:
        return None
    shape = shape_of(record)
    if shape is None:
        return None
    if len(shape) == 1:
        return _with_system(record, messages_of(unfolded(record[shape[0]]) or [], shape[0]))
    return _pair(record, *shape)


def shape_of(fields: Collection[str]) -> tuple[str, ...] | None:
    """(field of messages,) or (field of the question, field of the answer) by the names of a record's fields alone, or
    of those whose values can be such where it is a record; None where they are of no known shape."""
    record = fields if isinstance(fields, Mapping) else None
    for name in LISTS:
        if name in fields and (record is None or is_messages(unfolded(record[name]))):
            return (name,)
    for question, answer in PAIRS:
        if question not in fields or answer not in fields:
            continue
        if record is None or (_sayable(record[question]) and _sayable(record[answer])):
            return question, answer
    others: Iterator[str] = (name for name in _OTHER_LISTS if record and _is_other(name, record.get(name)))
    if record is not None:  # messages that are null say nothing, as a null text does
        others = itertools.chain(others, (name for name in LISTS if name in record and record[name] is None))
    return next(((name,) for name in others), None)


def _is_other(name: str, value: object) -> bool:
    return bool(value) and is_messages(value) and (name == "data" or not _strings(value))


def unfolded(value: object) -> object:
    """A list of messages that is written as JSON within a string, as tables have it; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(value)
            return read if is_messages(read) else value
    return value


def is_messages(value: object) -> bool:
    """Whether a value is meant as a list of messages: its first entry has a role, or there is none; or they are
    strings, two and more, said in turn."""
    if not isinstance(value, list):
        return False
    return (
        not value
        or _in_turn(value)
        or _in_pairs(value)
        or (isinstance(value[0], Mapping) and _role_field(value[0]) != "")
    )


def _in_turn(value: Sequence[object]) -> bool:
    return len(value) > 1 and _strings(value)


def _strings(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(each, str) for each in value)


def _in_pairs(value: Sequence[object]) -> bool:
    """Whether they are questions and answers, [{"human", "assistant"}, …], as Firefly and MOSS are published."""
    return len(value) > 0 and all(isinstance(each, Mapping) and _pair_of(each) for each in value)


def _pair_of(each: Mapping[str, Any]) -> tuple[str, str] | None:
    fits = (pair for pair in _TURNS if all(isinstance(each.get(name), str) for name in pair))
    return next(fits, None)


def messages_of(value: object, where: str) -> list[Message]:
    """A list of messages in the one form: {"role", "content"}, both strings; and "weight", 0, of one of the assistant
    that is not to be learned.

    Raises:
        NotMessages: it is not of such a form.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise NotMessages(_form(where))
    if _in_turn(value):  # the user begins
        return [{"role": ("user", "assistant")[turn % 2], "content": said} for turn, said in enumerate(value)]
    if _in_pairs(value):
        pairs = [
            (each[question], each[answer]) for each in value for question, answer in filter(None, [_pair_of(each)])
        ]
        return messages_of([said for pair in pairs for said in pair], where)
    return [_message(each, f"{where}[{number}]") for number, each in enumerate(value)]


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping) or not (field := _role_field(message)):
        raise NotMessages(_form(where))
    named = str(message[field])
    role = _ROLES.get(named.strip().lower())
    if role is None:
        raise NotMessages(_form(where, f" (role {named[:40]!r})"))
    content = next((message[name] for name in _CONTENT_FIELDS if name in message), None)
    if not content and isinstance(message.get("refusal"), str):  # which OpenAI's API says in a field of its own
        content = message["refusal"]
    if role == "tool" and isinstance(content, Mapping | list) and not _is_parts(content):  # what a tool gives, as JSON
        content = json.dumps(content, ensure_ascii=False, default=str)
    if (
        role == "user"
        and isinstance(content, list)
        and content
        and all(_kind(part) == "tool_result" for part in content)
    ):
        role = "tool"
    calls = _calls(message, where)
    if content is None and not calls and not any(name in message for name in _CONTENT_FIELDS):
        raise NotMessages(_form(where))
    pieces = [_words(content, where), *calls]
    said = {"role": role, "content": "\n".join(piece for piece in pieces if piece)}
    return said if role != "assistant" or _weighs(message, where) else {**said, "weight": 0}


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether the words of a message in the one form are to be learned: the assistant's, unless its weight is 0."""
    return message.get("role") == "assistant" and message.get("weight") != 0


def _weighs(message: Mapping[str, Any], where: str) -> bool:
    """Whether an answer is to be learned, as its weight says."""
    weight = message.get("weight")
    if weight is None or weight != weight:  # NaN is a table's null
        return message.get("train") is not False
    if weight not in (0, 1):
        raise NotMessages(
            f"{where}.weight is {str(weight)[:30]!r}; 1 (the default) is learned, 0 is not: give one of them"
        )
    return bool(weight)


def _role_field(message: Mapping[str, Any]) -> str:
    return next((name for name in _ROLE_FIELDS if isinstance(message.get(name), str)), "")


def _is_parts(content: Mapping[str, Any] | list[Any]) -> bool:
    parts = [content] if isinstance(content, Mapping) else content
    return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts)


def _kind(part: object) -> object:
    return part.get("type", "text") if isinstance(part, Mapping) else "text"


def _words(content: object, where: str) -> str:
    """A content's text: null says nothing, parts are joined."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise NotMessages(_form(where))
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = _kind(part)
        if kind == "refusal":
            text = part.get("refusal")
        elif kind == "tool_result":  # what a tool says, in a message of the user (Anthropic)
            text = _words(part.get("content"), where)
        elif kind == "tool_use":
            call = {"name": part.get("name"), "arguments": part.get("input")}
            text = "\n" * bool(texts) + "".join(_calls({"tool_calls": [call]}, where))
        elif kind not in ("text", "input_text", "output_text", None):
            raise NotMessages(f"{where} holds a part of type {str(kind)[:30]!r}, which is no text; remove the record")
        if not (isinstance(text, str) or (text is None and isinstance(part, Mapping) and "text" in part)):
            raise NotMessages(_form(where))
        texts.append(text or "")
    return "".join(texts)


def _calls(message: Mapping[str, Any], where: str) -> list[str]:
    """The calls of tools that a message makes, as text."""
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise NotMessages(_form(f"{where}.tool_calls"))
    written = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise NotMessages(_form(f"{where}.tool_calls", '; a call is {"function": {"name": …, "arguments": …}}'))
        arguments = function.get("arguments")
        with contextlib.suppress(ValueError):  # else as it stands
            arguments = json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments
        body = json.dumps({"name": function["name"], "arguments": arguments or {}}, ensure_ascii=False, default=str)
        written.append(f"<tool_call>\n{body}\n</tool_call>")
    return written


def _sayable(value: object) -> bool:
    return value is None or isinstance(value, str) or (is_messages(value) and not _strings(value))


def _with_system(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages after a system's words that stand in a field of their own, unless they begin with such."""
    system = next((record[name] for name in SYSTEM if isinstance(record.get(name), str) and record[name]), None)
    if not system or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _pair(record: Mapping[str, Any], question: str, answer: str) -> list[Message]:
    """A question and its answer, with a system's words before them and what an instruction is about below it."""
    messages = [*_with_system(record, []), *_history(record)]
    asked, answered = record[question], record[answer]
    if isinstance(asked, list):
        messages += messages_of(asked, question)
    else:
        about = [record.get(name) for name in ADDED if name not in (question, answer)]
        pieces = [asked, *(piece for piece in about if isinstance(piece, str))]
        messages.append({"role": "user", "content": "\n\n".join(piece for piece in pieces if piece)})
    if isinstance(answered, list):
        replies = messages_of(answered, answer)
        messages = replies if replies[: len(messages)] == messages else [*messages, *replies]
    else:
        messages.append({"role": "assistant", "content": answered or ""})
    return messages


def _history(record: Mapping[str, Any]) -> list[Message]:
    """What was said before, as Alpaca's form has it: "history": [[question, answer], …]."""
    history = record.get("history")
    pairs = history if isinstance(history, list) else []
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in pairs):
        return []
    return [message for asked, answered in pairs for message in messages_of([asked, answered], "history")]


def _form(where: str, more: str = "") -> str:
    return f'{where} is no message like {{"role": "user", "content": "Hello"}}{more}; correct or remove it'
