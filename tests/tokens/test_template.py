"""A model's own chat template: rendered as `transformers` renders it, in a sandbox that always ends, with what the
assistant says marked."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.tokens import template
from lmforge.tokens.chat import end_counts, has_chat_tokens, render_chat, render_conversation, stop_tokens
from lmforge.tokens.template import check_template, render, render_text
from lmforge.tokens.tokenizer import Tokenizer
from lmforge.tokens.tokenizer_json import described
from tests.tokens.others import CHATML, KINDS, MARKED, with_end

TEMPLATES = {"chatml": CHATML, "marked": MARKED}
ways = pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in TEMPLATES])
WORDS = st.text(max_size=12) | st.sampled_from(
    ["<|im_end|>", "a <|im_start|> b", "</s>", "the smith", " x ", "\n", "日本"]
)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


@cache
def tokenizer_of(kind: str, name: str) -> Tokenizer:
    return Tokenizer(described(KINDS[kind](), kind, **with_end(KINDS[kind](), kind), chat_template=TEMPLATES[name]))


@cache
def theirs(kind: str, name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizer_of(kind, name)
    bos = {"bos_token": "<s>"} if tokenizer.special_tokens.bos is not None else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.standard_json()), chat_template=TEMPLATES[name], **bos
    )


def conversation(turns: list[tuple[str, str]], last: bool = True) -> list[dict[str, str]]:
    messages = [
        {"role": role, "content": words}
        for turn in turns
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
    return messages if last else messages[:-1]


def clean(turns: list[tuple[str, str]], kind: str) -> bool:
    return not any(name in words for turn in turns for words in turn for name in tokenizer_of(kind, "chatml").special)


@ways
@given(turns=TURNS)
@settings(max_examples=30, deadline=None)
def test_ids_are_those_of_transformers(kind: str, name: str, turns: list[tuple[str, str]]) -> None:
    if not clean(turns, kind):
        return
    turns = [tuple(words.encode("utf-8", "replace").decode() for words in turn) for turn in turns]  # type: ignore[misc]
    tokenizer, library = tokenizer_of(kind, name), theirs(kind, name)
    whole, asked = conversation(turns), conversation(turns, last=False)
    expected = library.apply_chat_template(whole, return_dict=False)
    assert render_conversation(whole, tokenizer).tokens == expected
    asked_of = library.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert render_chat(asked, tokenizer) == asked_of


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_generation_blocks_is_that_of_transformers(kind: str) -> None:
    messages = conversation([("the smith", "hello world"), ("is it hot", "iron, it's 12 o'clock")])
    rendered = render_conversation(messages, tokenizer_of(kind, "marked"))
    library = theirs(kind, "marked").apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    assert [int(each) for each in rendered.counted[1:]] == library["assistant_masks"][1:]


@ways
@given(turns=TURNS)
@settings(max_examples=40, deadline=None)
def test_what_counts_is_what_the_assistant_says_and_its_end(kind: str, name: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = tokenizer_of(kind, name)
    rendered = render_conversation(conversation(turns), tokenizer)
    end = tokenizer.special["<|im_end|>"]
    assert len(rendered.tokens) == len(rendered.counted)
    assert rendered.counted[0]
    assert not end_counts(rendered, tokenizer)  # a turn's end is no text's end
    counted = [token for token, counts in zip(rendered.tokens[1:], rendered.counted[1:], strict=True) if counts]
    assert counted.count(end) == len(turns)
    assert counted[-1] == end
    assert rendered.tokens.count(end) == 2 * len(turns) + (name == "chatml")  # none comes from the words
    said = tokenizer.decode(counted).replace(" ", "")
    if clean(turns, kind) and all(words.isascii() and words.isalpha() for turn in turns for words in turn):
        assert kind in ("byte level", "metaspace") or said == "".join(words for _, words in turns)


@ways
def test_an_answer_of_weight_0_is_read_and_not_learned(kind: str, name: str) -> None:
    tokenizer = tokenizer_of(kind, name)
    messages: list[dict[str, Any]] = [*conversation([("the smith", "hello world"), ("is it hot", "iron")])]
    plain = render_conversation(messages, tokenizer)
    messages[1]["weight"] = 0
    rendered = render_conversation(messages, tokenizer)
    assert rendered.tokens == plain.tokens
    middle = len(render_conversation(messages[:2], tokenizer).tokens)
    assert rendered.counted[1:middle] == [False] * (middle - 1)
    assert rendered.counted[middle:] == plain.counted[middle:]


def test_of_blocks_that_are_no_turns_none_is_told_by_its_weight() -> None:
    """A template that says two things a turn: which of them has weight 0 cannot be told."""
    source = (
        "{% for m in messages %}{% generation %}a{% endgeneration %}{% generation %}b{% endgeneration %}{% endfor %}"
    )
    messages: list[dict[str, Any]] = [*conversation([("x", "y")])]
    assert len(render_text(source, messages, {}).said) == 4
    messages[1]["weight"] = 0
    with pytest.raises(InputError, match="4 generation blocks for 1 turns"):
        render_text(source, messages, {})


@ways
@given(turns=TURNS)
@settings(max_examples=30, deadline=None)
def test_what_is_asked_is_the_beginning_of_what_is_learned(kind: str, name: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = tokenizer_of(kind, name)
    asked = render_chat(conversation(turns, last=False), tokenizer)
    learned = render_conversation(conversation([*turns[:-1], (turns[-1][0], "iron")]), tokenizer).tokens
    if kind == "byte level":  # SentencePiece may join the line end before the answer with it
        assert learned[: len(asked)] == asked


@ways
def test_no_bos_stands_twice(kind: str, name: str) -> None:
    tokenizer = tokenizer_of(kind, name)
    tokens = render_conversation(conversation([("<s> the smith", "iron")]), tokenizer).tokens
    bos = tokenizer.special_tokens.bos
    assert bos is None or tokens.count(bos) == (name == "marked")


@ways
def test_the_model_goes_on_with_its_own_last_words(kind: str, name: str) -> None:
    tokenizer = tokenizer_of(kind, name)
    messages = conversation([("is it hot", "it is ")])
    tokens = render_chat(messages, tokenizer)
    assert tokens[-1] != tokenizer.special["<|im_end|>"]
    assert tokenizer.decode(tokens).replace("\n", " ").endswith("it is ")
    empty = render_chat([*messages[:-1], {"role": "assistant", "content": ""}], tokenizer)
    assert empty == render_chat(messages[:-1], tokenizer)


def test_several_tokens_end_an_answer() -> None:
    tokenizer = tokenizer_of("llama", "chatml")
    assert has_chat_tokens(tokenizer)
    assert set(stop_tokens(tokenizer)) == {tokenizer.special["</s>"], tokenizer.special["<|im_end|>"]}


HOSTILE = {
    "loops for ever": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "calls itself": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a long text": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a long sum": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a long list": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a long block": "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "padding": "{{ 'a'.ljust(10000000000) }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "replace": "{{ ('a' * 90000).replace('a', 'a' * 90000) }}",
    "replace filter": "{{ ('a' * 90000) | replace('a', 'a' * 90000) }}",
    "join": "{{ range(90000) | join('a' * 90000) }}",
    "includes a file": "{% include '/etc/passwd' %}",
    "imports a file": "{% import '/etc/passwd' as x %}",
    "extends a file": "{% extends '/etc/passwd' %}",
    "goes through classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "goes through globals": "{{ raise_exception.__globals__['sys'] }}",
    "changes the messages": "{{ messages.append(1) }}",
    "names nothing": "{{ nothing.at.all }}",
    "raises": "{{ raise_exception('no system role') }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_harms_is_refused_in_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "MOST_LINES", 50_000)
    with pytest.raises(InputError, match=r"^chat template: refused \(") as error:
        render(source, [{"role": "user", "content": "x"}], {}, ask=True)
    assert "\n" not in str(error.value)
    assert "root:" not in str(error.value)


def test_the_message_of_a_template_is_told() -> None:
    with pytest.raises(InputError, match="no system role"):
        render(HOSTILE["raises"], [], {}, ask=True)


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% endfor %}", "{% generation %}"])
def test_what_is_no_jinja_is_refused_at_import(source: str) -> None:
    with pytest.raises(InputError, match=r"^x: chat template: not Jinja"):
        check_template(source, "x")


def test_tracing_is_put_back() -> None:
    import sys

    before = sys.gettrace()
    render("{{ messages | length }}", [], {}, ask=True)
    with pytest.raises(InputError):
        render(HOSTILE["raises"], [], {}, ask=True)
    assert sys.gettrace() is before


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    source = "{% for m in messages %}{% if loop.last or m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}"
    with pytest.raises(InputError, match="writes message 1 otherwise once others follow"):
        render_text(source, conversation([("a", "b"), ("c", "d")]), {})


def test_a_prompt_that_only_asking_writes_is_not_learned() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    )
    text, said = render_text(source, conversation([("a", "b"), ("c", "d")]), {})
    assert [text[first:last] for first, last in said] == ["b;", "d;"]


def test_what_stands_in_generation_blocks_is_said() -> None:
    text, said = render_text(MARKED, conversation([("a", "b"), ("c", "d e")]), {"bos_token": "<s>"})
    assert [text[first:last] for first, last in said] == ["b<|im_end|>", "d e<|im_end|>"]
    assert not re.search("[\ufdd0-\ufdd4]", text)


def test_marks_in_a_message_are_no_marks() -> None:
    tokenizer = tokenizer_of("byte level", "marked")
    plain, odd = (render_conversation(conversation([(words, "iron")]), tokenizer) for words in ("\ufffd", "\ufdd2"))
    assert plain == odd


def test_roles_and_fields_are_the_templates() -> None:
    content = described(
        KINDS["byte level"](),
        "x",
        eos=["<|im_end|>"],
        chat_template="{% for m in messages %}{{ m.role }}:{{ m.name }}{% endfor %}",
    )
    tokenizer = Tokenizer(content)
    assert tokenizer.decode(render_chat([{"role": "tool", "content": "x", "name": "the"}], tokenizer)) == "tool:the"
    for messages in ([], [{"role": None, "content": "x"}], [{"role": "user", "content": 3}]):
        with pytest.raises(InputError, match=r"^messages"):
            render_chat(messages, tokenizer)
