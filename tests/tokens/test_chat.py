"""One transcript for every form of the same conversation; what is not a conversation is refused by its place."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.chat import SPEAKERS, STOP, render_chat, transcript

TOKENIZER = train_tokenizer([], 257)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_conversation_is_a_transcript_after_one_end_of_text() -> None:
    messages = [message("system", "Be brief."), message("user", " Hello \n"), message("assistant", "Hi."), message("user", "Bye")]
    tokens = render_chat(messages, TOKENIZER)
    assert tokens[0] == TOKENIZER.end_of_text
    assert tokens.count(TOKENIZER.end_of_text) == 1
    assert TOKENIZER.decode(tokens) == "System: Be brief.\n\nUser: Hello\n\nAssistant: Hi.\n\nUser: Bye\n\nAssistant:"


def test_the_assistants_own_last_words_are_gone_on_from() -> None:
    assert transcript([message("user", "Count."), message("assistant", "One, ")]) == "User: Count.\n\nAssistant: One,"


def test_developer_is_another_name_for_system() -> None:
    assert transcript([message("developer", "x")]) == transcript([message("system", "x")])


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert transcript([message("user", parts)]) == transcript([message("user", "one two")])


@given(st.lists(st.tuples(st.sampled_from(sorted(SPEAKERS)), st.text()), min_size=1, max_size=6))
def test_the_end_of_text_stands_at_the_beginning_alone(turns: list[tuple[str, str]]) -> None:
    messages = [message(role, content) for role, content in turns]
    tokens = render_chat(messages, TOKENIZER)
    assert tokens[0] == 0
    assert 0 not in tokens[1:]
    text = transcript(messages)
    assert TOKENIZER.decode(tokens) == text
    at = 0
    for role, content in turns:  # every turn is there, in order
        line = f"{SPEAKERS[role]}: {content.strip()}".rstrip()
        assert text.find(line, at) == at
        at += len(line) + 2
    assert (text[at:] == "Assistant:") is (turns[-1][0] != "assistant")


def test_every_speakers_next_turn_stops_the_model() -> None:
    for speaker in set(SPEAKERS.values()):
        assert f"\n{speaker}:" in STOP
        assert f"\n\n{speaker}:" in STOP


@pytest.mark.parametrize("role", ["tool", "User", "", None, 3, ["user"]])
def test_an_unknown_role_is_refused_by_its_index(role: Any) -> None:
    expected = re.escape(f"messages[1].role: {role!r} is not a role; give one of system, developer, user, assistant")
    with pytest.raises(InputError, match=expected):
        render_chat([message("user", "x"), message(role, "y")], TOKENIZER)


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(InputError, match=r"messages\[0\]\.role: None is not a role"):
        render_chat(["hello"], TOKENIZER)  # type: ignore[list-item]
    for nothing in ([], "hello", None):
        with pytest.raises(InputError, match="messages: empty; give at least one"):
            render_chat(nothing, TOKENIZER)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, 3, {"text": "x"}])
def test_content_of_another_kind_is_refused(content: Any) -> None:
    with pytest.raises(InputError, match=r"messages\[0\]\.content: neither a string nor a list of text parts; give the message's text"):
        render_chat([message("user", content)], TOKENIZER)


@pytest.mark.parametrize(("part", "kind"), [({"type": "image_url"}, "'image_url'"), ({"type": "text"}, "'text'"), ("x", "'str'")])
def test_a_part_that_is_no_text_is_refused_by_its_place(part: Any, kind: str) -> None:
    with pytest.raises(InputError, match=rf"messages\[0\]\.content\[1\]: {kind} is not a text part; this model reads text alone"):
        render_chat([message("user", [{"type": "text", "text": "x"}, part])], TOKENIZER)
