"""One rendering of a conversation for all who need one; what is not a conversation is refused by its place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens.bpe import CHAT_TOKENS, Tokenizer, train_tokenizer
from lmforge.tokens.chat import (
    SPEAKERS,
    STOP,
    conversation_text,
    end_counts,
    render_chat,
    render_conversation,
    stop_tokens,
)

TOKENIZER = train_tokenizer([], 257)
WITH_CHAT = train_tokenizer([], 261, chat=True)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "conversations.json").read_text("utf-8"))["conversations"]
CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from(sorted(SPEAKERS)), st.text() | st.sampled_from(CHAT_TOKENS)), min_size=1, max_size=6
)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def transcript(messages: list[dict[str, Any]]) -> str:
    return TOKENIZER.decode(render_chat(messages, TOKENIZER))


@pytest.mark.parametrize("conversation", GOLDEN, ids=range(len(GOLDEN)))
@pytest.mark.parametrize("tokenizer", [TOKENIZER, WITH_CHAT], ids=["transcript", "chat tokens"])
def test_conversations_have_their_known_ids(conversation: dict[str, Any], tokenizer: Tokenizer) -> None:
    known = conversation[str(tokenizer.vocab_size)]
    rendered = render_conversation(conversation["messages"], tokenizer)
    assert rendered.tokens == known["learn"]
    assert "".join("01"[counts] for counts in rendered.counted) == known["counted"]
    assert render_chat(conversation["messages"], tokenizer) == known["ask"]


def test_a_conversation_is_a_transcript_after_one_end_of_text() -> None:
    messages = [
        message("system", "Be brief."),
        message("user", " Hello \n"),
        message("assistant", "Hi."),
        message("user", "Bye"),
    ]
    tokens = render_chat(messages, TOKENIZER)
    assert tokens[0] == TOKENIZER.end_of_text
    assert tokens.count(TOKENIZER.end_of_text) == 1
    assert TOKENIZER.decode(tokens) == "System: Be brief.\n\nUser: Hello\n\nAssistant: Hi.\n\nUser: Bye\n\nAssistant:"


def test_the_assistants_own_last_words_are_gone_on_from() -> None:
    messages = [message("user", "Count."), message("assistant", "One, ")]
    assert transcript(messages) == "User: Count.\n\nAssistant: One, "
    assert render_chat(messages, WITH_CHAT)[-5:] == WITH_CHAT.encode("One, ")


def test_developer_is_another_name_for_system() -> None:
    for tokenizer in (TOKENIZER, WITH_CHAT):
        assert render_chat([message("developer", "x")], tokenizer) == render_chat([message("system", "x")], tokenizer)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert transcript([message("user", parts)]) == transcript([message("user", "one two")])


@given(CONVERSATIONS)
def test_the_end_of_text_stands_at_the_beginning_alone(turns: list[tuple[str, str]]) -> None:
    messages = [message(role, content) for role, content in turns]
    tokens = render_chat(messages, TOKENIZER)
    assert tokens[0] == 0
    assert 0 not in tokens[1:]
    text = TOKENIZER.decode(tokens)
    at = 0
    for number, (role, content) in enumerate(turns):  # every turn is there, in order
        line = f"{SPEAKERS[role]}: {_clean(content)}".rstrip()
        if role == "assistant" and number == len(turns) - 1 and content.strip():  # gone on with as it stands
            line = f"Assistant: {TOKENIZER.decode(TOKENIZER.encode(content))}"
        assert text.find(line, at) == at
        at += len(line) + 2
    assert (text[at:] == "Assistant:") is (turns[-1][0] != "assistant")


def _clean(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER.encode(text.strip()))  # lone surrogates, which no file can hold


@given(CONVERSATIONS)
def test_no_words_become_a_special_token(turns: list[tuple[str, str]]) -> None:
    messages = [message(role, content) for role, content in turns]
    tokens, counted = render_conversation(messages, WITH_CHAT)
    special = [token for token in tokens if token in WITH_CHAT.special.values()]
    expected = ["<|endoftext|>"]
    for role, _ in turns:
        expected += [f"<|{SPEAKERS[role].lower()}|>", "<|end|>"]
    assert special == [WITH_CHAT.special[name] for name in expected]
    assert len(tokens) == len(counted)


@given(CONVERSATIONS)
def test_what_is_asked_is_the_beginning_of_what_is_learned(turns: list[tuple[str, str]]) -> None:
    messages = [message(role, content) for role, content in turns]
    for tokenizer in (TOKENIZER, WITH_CHAT):
        learned = render_conversation(messages, tokenizer).tokens
        for number in range(1, len(messages)):
            if messages[number]["role"] == "assistant" and messages[number - 1]["role"] != "assistant":
                asked = render_chat(messages[:number], tokenizer)
                assert learned[: len(asked)] == asked


@given(CONVERSATIONS)
def test_the_assistants_words_and_their_end_are_learned_and_nothing_else(turns: list[tuple[str, str]]) -> None:
    tokens, counted = render_conversation([message(role, content) for role, content in turns], WITH_CHAT)
    learned = [token for token, counts in zip(tokens[1:], counted[1:], strict=True) if counts]
    end = WITH_CHAT.special["<|end|>"]
    assert learned == [
        token for role, content in turns if role == "assistant" for token in (*WITH_CHAT.encode(content), end)
    ]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, WITH_CHAT], ids=["transcript", "chat tokens"])
def test_an_answer_of_weight_0_is_read_and_not_learned(tokenizer: Tokenizer) -> None:
    asked, wrong, right = message("user", "Ask"), message("assistant", "Wrong"), message("assistant", "Right")
    plain = render_conversation([asked, wrong, asked, right], tokenizer)
    for weights in ((0, 1), (1, 0), (0, 0), (1, 1)):
        weighed = [asked, wrong | {"weight": weights[0]}, asked, right | {"weight": weights[1]}]
        rendered = render_conversation(weighed, tokenizer)
        assert rendered.tokens == plain.tokens
        said = tokenizer.decode([token for token, counts in zip(*rendered, strict=True) if counts])
        assert ("Wrong" in said, "Right" in said) == (bool(weights[0]), bool(weights[1]))
        assert end_counts(rendered, tokenizer) == bool(weights[1])
        assert sum(rendered.counted) == 1 + sum(weights) * (sum(plain.counted) - 1) // 2 or weights[0] != weights[1]


def test_in_a_transcript_the_next_turns_name_ends_the_assistants() -> None:
    tokens, counted = render_conversation(
        [message("user", "a"), message("assistant", "b"), message("user", "c")], TOKENIZER
    )
    learned = [token for token, counts in zip(tokens[1:], counted[1:], strict=True) if counts]
    assert TOKENIZER.decode(learned) == " b\n\nUser:"


def test_every_special_token_ends_an_answer() -> None:
    assert stop_tokens(TOKENIZER) == (0,)
    assert sorted(stop_tokens(WITH_CHAT)) == [0, 1, 2, 3, 4]
    assert all(WITH_CHAT.token_bytes(token) == b"" for token in stop_tokens(WITH_CHAT))


def test_a_conversation_reads_as_text() -> None:
    assert conversation_text([message("user", "a "), message("assistant", "b")]) == "User: a\n\nAssistant: b"


def test_every_speakers_next_turn_stops_the_model() -> None:
    for speaker in set(SPEAKERS.values()):
        assert f"\n{speaker}:" in STOP
        assert f"\n\n{speaker}:" in STOP


@pytest.mark.parametrize("role", ["robot", "User", "", None, 3, ["user"]])
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
    with pytest.raises(
        InputError, match=r"messages\[0\]\.content: neither a string nor a list of text parts; give the message's text"
    ):
        render_chat([message("user", content)], TOKENIZER)


@pytest.mark.parametrize(
    ("part", "kind"), [({"type": "image_url"}, "'image_url'"), ({"type": "text"}, "'text'"), ("x", "'str'")]
)
def test_a_part_that_is_no_text_is_refused_by_its_place(part: Any, kind: str) -> None:
    with pytest.raises(
        InputError, match=rf"messages\[0\]\.content\[1\]: {kind} is not a text part; this model reads text alone"
    ):
        render_chat([message("user", [{"type": "text", "text": "x"}, part])], TOKENIZER)
