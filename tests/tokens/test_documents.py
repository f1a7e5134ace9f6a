"""Documents become the same tokens in one process and in several; loss spans choose tokens by their bytes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError, LmforgeError
from lmforge.tokens import documents as module
from lmforge.tokens.bpe import Tokenizer, train_tokenizer
from lmforge.tokens.chat import render_conversation
from lmforge.tokens.documents import encode_batch, encode_lines

TOKENIZER = train_tokenizer(["ab cd naïve 日本語 " * 9], 270)


def line(text: str, **meta: Any) -> bytes:
    return json.dumps({"id": "d7", "text": text, "source": "s", "genre": "web", "meta": meta}).encode()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    return tmp_path / "tokenizer.json"


def test_any_number_of_processes_gives_the_same_documents_in_order(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        line(f"{number} cd naïve ab " * (number % 7), loss_spans=[[0, number % 5]] if number % 7 else [])
        for number in range(300)
    ]
    found = []
    for workers, size in ((1, 1 << 20), (1, 300), (2, 2000), (3, 500)):
        monkeypatch.setattr(module, "BATCH_BYTES", size)
        documents = [document for batch in encode_lines(iter(lines), saved, workers) for document in batch]
        found.append([(document.tokens.tolist(), document.counted.tolist(), *document[2:]) for document in documents])
    assert len(found[0]) == 300
    assert all(each == found[0] for each in found)


def test_only_so_much_is_read_ahead(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    read = 0

    def lines() -> Any:
        nonlocal read
        for _ in range(100):
            read += 1
            yield line("ab")

    batches = encode_lines(lines(), saved, 2)
    for taken in range(1, 20):
        next(batches)
        assert read <= taken + 2 * 2 + 1
    batches.close()


def test_an_error_in_a_worker_is_told(saved: Path) -> None:
    with pytest.raises(InputError, match=r"corpus document 'd7': meta\.loss_spans"):
        list(encode_lines([line("ab", loss_spans=[[0, 9]])], saved, 2))


def test_a_worker_that_dies_is_told(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_encode", die)
    with pytest.raises(LmforgeError, match=r"one of the 2 processes that encode died .*; set tokens\.workers lower"):
        list(encode_lines([line("ab")], saved, 2))


def die(_batch: list[bytes]) -> None:
    os._exit(9)


@given(st.text(alphabet="ab cdï日\n🙂", max_size=30), st.data())
def test_a_token_counts_when_one_of_its_bytes_does(text: str, data: st.DataObject) -> None:
    places = st.integers(0, len(text))
    spans = [sorted(pair) for pair in data.draw(st.lists(st.tuples(places, places), max_size=3))]
    (document,) = encode_batch([line(text, loss_spans=spans)], TOKENIZER)
    assert document.counted is not None
    assert document.counted[0]
    chosen = {at for first, last in spans for at in range(len(text[:first].encode()), len(text[:last].encode()))}
    at = 0
    for token, counts in zip(document.tokens[1:].tolist(), document.counted[1:].tolist(), strict=True):
        size = len(TOKENIZER.token_bytes(token))
        assert counts is bool(chosen & {*range(at, at + size)})
        at += size
    assert at == document.bytes == len(text.encode())


def test_everything_counts_where_nothing_is_said() -> None:
    (document,) = encode_batch([line("ab cd")], TOKENIZER)
    assert document.counted is None
    assert (document.source, document.genre, document.bytes) == ("s", "web", 5)
    assert document.tokens.dtype == np.uint16


@pytest.mark.parametrize("spans", [[[0, 6]], [[-1, 2]], [[3, 2]], [[1]], ["ab"], 7, [[None, 2]]])
def test_spans_outside_the_text_are_refused(spans: Any) -> None:
    with pytest.raises(
        InputError,
        match=r"^corpus document 'd7': meta\.loss_spans .* are not \[first, last\] pairs of characters within "
        r"its text of 5; correct them",
    ):
        encode_batch([line("ab cd", loss_spans=spans)], TOKENIZER)


@pytest.mark.parametrize(
    "tokenizer", [TOKENIZER, train_tokenizer([], 261, chat=True)], ids=["transcript", "chat tokens"]
)
def test_a_conversation_is_rendered(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    first, chat, last = encode_batch([line("ab"), line("ab cd", messages=messages), line("cd")], tokenizer)
    rendered = render_conversation(messages, tokenizer)
    assert chat.tokens.tolist() == rendered.tokens
    assert chat.counted is not None
    assert chat.counted.tolist() == rendered.counted
    assert chat.bytes == 5
    assert first.tokens.tolist() == [0, *tokenizer.encode("ab")]
    assert last.tokens.tolist() == [0, *tokenizer.encode("cd")]


def test_messages_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"^corpus document 'd7': meta\.messages\[0\]\.role: 'robot' is not a role"):
        encode_batch([line("x", messages=[{"role": "robot", "content": "x"}])], TOKENIZER)
