"""Names of pre-tokenizers stand for parts that `tokenizers` runs, and are found again by them."""

from __future__ import annotations

import orjson
import pytest
import tokenizers

from lmforge.tokens.ggml_pre import IGNORE_MERGES, NAMES, name_of, pre_tokenizer


def cut(name: str, text: str) -> list[str]:
    component = orjson.dumps(pre_tokenizer(name)).decode()
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    file = orjson.loads(made.to_str()) | {"pre_tokenizer": orjson.loads(component)}
    pieces = tokenizers.Tokenizer.from_str(orjson.dumps(file).decode()).pre_tokenizer.pre_tokenize_str(text)
    return [text[begin:end] for _, (begin, end) in pieces]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_cuts_and_loses_nothing(name: str) -> None:
    text = "Don't  stop: 12345 \u4f60\u597d\n\n  x+=1 \u0663\u0664"
    assert "".join(cut(name, text)) == text


def test_names_cut_as_their_tokenizers_do() -> None:
    assert cut("gpt-2", "a 123 don't") == ["a", " 123", " don", "'t"]
    assert cut("smollm", "a  123") == ["a", "  ", "1", "2", "3"]
    assert cut("llama-bpe", "a 12345 DON'T") == ["a", " ", "123", "45", " DON", "'T"]
    assert cut("qwen2", "a 123") == ["a", " ", "1", "2", "3"]
    assert cut("gpt-4o", "HelloWorld it's") == ["Hello", "World", " it's"]


@pytest.mark.parametrize("name", NAMES)
def test_a_part_is_named_again_by_one_that_cuts_alike(name: str) -> None:
    found_name = name_of(pre_tokenizer(name), name in IGNORE_MERGES)
    assert found_name is not None
    assert pre_tokenizer(found_name) == pre_tokenizer(name)


def test_other_ways_to_cut_have_no_name() -> None:
    assert name_of({"type": "Whitespace"}, False) is None
    assert name_of(None, False) is None
    assert pre_tokenizer("unheard-of") is None
