"""Conversations: every published shape becomes the one form; what is none is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lmforge.corpus.sources.conversation import NotMessages, conversation_of, is_learned, messages_of
from lmforge.corpus.sources.document import Reading
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.corpus.sources.records import document_of, text_field_of
from lmforge.recipe import Source

ASKED, SAID = {"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [ASKED, SAID]},
        {"prompt": "Ask", "prompt_id": "f0", "messages": [ASKED, SAID], "id": 4},
        {"conversations": [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Say"}]},
        {
            "conversation": [
                {"role": "User", "content": "Ask"},
                {"role": "Bot", "content": [{"type": "text", "text": "Say"}]},
            ]
        },
        {"instruction": "Ask", "input": "", "output": "Say"},
        {"prompt": "Ask", "completion": "Say"},
        {"prompt": [ASKED], "completion": [SAID]},
        {"prompt": "Ask", "chosen": [ASKED, SAID], "rejected": [ASKED]},
        {"question": "Ask", "answer": "Say"},
        {"Question": "Ask", "Answer": "Say"},
        {"INSTRUCTION": "Ask", "RESPONSE": "Say"},
        {"problem": "Ask", "solution": "Say"},
        {"messages": '[{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}]', "text_len": 3},
        {"dialog": ["Ask", "Say"]},
        {"id": "0", "data": ["Ask", "Say"]},
        {"items": [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Say"}]},
        {"contents": [{"role": "user", "parts": [{"text": "Ask"}]}, {"role": "model", "parts": [{"text": "Say"}]}]},
        {"conversation": [{"human": "Ask", "assistant": "Say"}], "category": "Chat"},
        {"chosen": [ASKED, SAID], "rejected": [ASKED]},
        {"messages": [ASKED, {"role": "assistant", "content": None, "refusal": "Say"}]},
        {"history": [["Ask", "Say"]], "messages": [ASKED, SAID]},
    ],
)
def test_shapes(record: dict[str, Any], tmp_path: Path) -> None:
    assert conversation_of(record, "text") == [ASKED, SAID]
    source = Source(kind="jsonl", path=tmp_path, text_field=text_field_of(record))
    document = document_of(record, Reading(source, Counter()), "f:1")
    assert (document["text"], document["meta"]["messages"]) == ("Ask\n\nSay", [ASKED, SAID])


@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_systems_words_in_a_field_of_their_own_come_first(field: str) -> None:
    system = {"role": "system", "content": "Be brief"}
    for record in ({"conversations": [ASKED, SAID]}, {"prompt": "Ask", "response": "Say"}):
        assert conversation_of({**record, field: "Be brief"}, "text") == [system, ASKED, SAID]
    own = {"role": "system", "content": "Be long"}
    assert conversation_of({"messages": [own, ASKED, SAID], field: "Be brief"}, "messages") == [own, ASKED, SAID]


def test_tools_and_refusals_in_parts() -> None:
    """As Anthropic's and OpenAI's interfaces write them."""
    used = {"type": "tool_use", "id": "1", "name": "weigh", "input": {"n": 1}}
    given = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "5"}]}
    messages = [
        ASKED,
        {"role": "assistant", "content": [{"type": "text", "text": "Wait"}, used]},
        {"role": "user", "content": [given]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
    ]
    assert messages_of(messages, "messages")[1:] == [
        {"role": "assistant", "content": 'Wait\n<tool_call>\n{"name": "weigh", "arguments": {"n": 1}}\n</tool_call>'},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "No"},
    ]
    for part in (
        {"type": "refusal"},
        {"type": "tool_use"},
        {"type": "tool_result", "content": 3},
        {"type": "thinking"},
    ):
        with pytest.raises(NotMessages):
            messages_of([{"role": "assistant", "content": [part]}], "messages")


def test_a_list_of_strings_is_no_answer_and_no_list_of_paragraphs_a_talk() -> None:
    """Several right answers are not turns; nor are paragraphs, whatever the field is called."""
    assert conversation_of({"question": "Ask", "answer": ["Say", "Speak"]}, "text") is None
    assert conversation_of({"contents": ["One.", "Two."]}, "text") is None
    assert conversation_of({"items": ["One.", "Two."]}, "text") is None


def test_what_was_said_before_an_instruction_is_kept() -> None:
    record = {"instruction": "Ask", "input": "", "output": "Say", "history": [["Ask", "Say"]]}
    assert conversation_of(record, "text") == [ASKED, SAID, ASKED, SAID]


def test_messages_that_are_null_say_nothing_and_a_list_of_paragraphs_is_no_conversation() -> None:
    assert conversation_of({"messages": None, "source": "x"}, "text") == []
    with pytest.raises(NotMessages, match="list of strings"):
        conversation_of({"paragraphs": ["One.", "Two."]}, "paragraphs")


def test_what_a_tool_gives_may_be_json() -> None:
    given = messages_of([ASKED, {"role": "tool", "content": {"degrees": 3}}], "messages")
    assert given[1] == {"role": "tool", "content": '{"degrees": 3}'}


def test_tools_speak_and_calls_are_written_out() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weigh", "arguments": '{"n": 1}'}}
    messages = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "5"}]
    assert messages_of(messages, "messages")[1:] == [
        {"role": "assistant", "content": '<tool_call>\n{"name": "weigh", "arguments": {"n": 1}}\n</tool_call>'},
        {"role": "tool", "content": "5"},
    ]


@pytest.mark.parametrize(
    "message", [{"role": "nobody", "content": "x"}, {"role": "user", "content": [{"type": "image"}]}]
)
def test_what_cannot_be_said_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(NotMessages, match=r"messages\[0\]"):
        messages_of([message], "messages")


@pytest.mark.parametrize(
    ("given", "learned"),
    [
        ({"weight": 0}, False), ({"weight": 0.0}, False), ({"weight": False}, False), ({"weight": 1}, True),
        ({"weight": None}, True), ({"weight": float("nan")}, True), ({"train": False}, False), ({"train": True}, True),
    ],
)  # fmt: skip
def test_an_answer_of_weight_0_is_not_learned(given: dict[str, Any], learned: bool) -> None:
    [asked, said] = messages_of([ASKED | given, SAID | given], "messages")
    assert asked == ASKED
    assert said == (SAID if learned else SAID | {"weight": 0})
    assert is_learned(said) is learned
    assert not is_learned(asked)


@pytest.mark.parametrize("weight", [0.5, -1, 2, "0", [0]])
def test_a_weight_of_another_kind_is_refused(weight: Any) -> None:
    with pytest.raises(NotMessages, match=r"messages\[1\]\.weight"):
        messages_of([ASKED, SAID | {"weight": weight}], "messages")


def test_the_users_columns_steer_nothing(tmp_path: Path) -> None:
    names = ("synthetic", "language", "genre", "source", "split_key", "loss_spans", "encoding", "title", "columns")
    record: dict[str, Any] = {"text": "words", **dict.fromkeys(names, "code"), "meta": {"synthetic": 1}}
    document = document_of(record, Reading(Source(kind="jsonl", path=tmp_path), Counter()), "f:1")
    assert (document["genre"], document["source"]) == ("unknown", f"jsonl:{tmp_path.name}")
    assert document["meta"] == {"columns": {**dict.fromkeys(names, "code"), "meta": {"synthetic": 1}}}


def test_messages_in_parquet(tmp_path: Path) -> None:
    said = [SAID, SAID | {"weight": 0}, SAID | {"weight": 1}]
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "messages": [[ASKED, *said]]}), tmp_path / "a.parquet")
    [document] = iter_documents(Source(kind="parquet", path=tmp_path))
    assert document["meta"]["messages"] == [ASKED, SAID, SAID | {"weight": 0}, SAID]
