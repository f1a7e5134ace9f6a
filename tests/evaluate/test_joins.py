"""Where a continuation begins among the tokens of both texts, and which rule said so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmforge.evaluate.joins import join, puts_begin
from lmforge.evaluate.task import Context
from lmforge.tokens.bpe import Tokenizer


@pytest.fixture
def tokenizer(context_of: Callable[..., Context]) -> Tokenizer:
    return context_of(None).tokenizer


def test_each_rule(tokenizer: Tokenizer) -> None:
    pairs = [("The old man", " went"), ("", "The"), ("The", ""), ("", ""), ("The ", "man")]
    together, begin, empty, nothing, moved = join(tokenizer, pairs, False)
    assert (together.rule, begin.rule, empty.rule, nothing.rule) == ("together", "begin", "empty", "empty")
    assert tokenizer.decode([*together.before, *together.after]) == "The old man went"
    assert tokenizer.decode(together.after) == " went"
    assert (begin.before, tokenizer.decode(begin.after)) == ([tokenizer.begin], "The")
    assert (empty.after, nothing.before) == ([], [tokenizer.begin])
    assert tokenizer.decode(moved.after) == " man"  # the blank belongs to the continuation


def test_a_token_across_the_join_is_scored(tokenizer: Tokenizer) -> None:
    word = max((tokenizer.decode([token]) for token in range(tokenizer.vocab_size)), key=len).strip()
    assert len(tokenizer.encode(word)) < len(tokenizer.encode(word[:-1])) + len(tokenizer.encode(word[-1]))
    (joined,) = join(tokenizer, [(word[:-1], word[-1])], False)
    assert joined.rule == "across"
    assert joined.after
    assert joined.before
    assert tokenizer.decode(joined.after).endswith(word[-1])
    whole = tokenizer.encode(word)
    assert [*joined.before, *joined.after] in (whole, [tokenizer.begin, *whole])


def test_the_beginning_mark_stands_once(tokenizer: Tokenizer) -> None:
    assert puts_begin(tokenizer)
    for joined in join(tokenizer, [("a b", " c"), ("", "c"), ("a", "")], True):
        assert [*joined.before, *joined.after].count(tokenizer.begin) == 1
        assert joined.before[0] == tokenizer.begin


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_what_has_text_has_tokens_and_nothing_is_lost(context: str, continuation: str) -> None:
    tokenizer = _ANY[0]
    (joined,) = join(tokenizer, [(context, continuation)], True)
    assert joined.after
    plain = (context + continuation).encode("utf-8", "replace").decode()
    assert tokenizer.decode([*joined.before[1:], *joined.after]) == plain


_ANY: list[Tokenizer] = []


@pytest.fixture(autouse=True)
def _hold(tokenizer: Tokenizer) -> None:
    _ANY[:] = [tokenizer]
