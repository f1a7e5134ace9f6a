"""Records: which fields become what; the rest is in test_sources."""

from collections import Counter
from pathlib import Path

import pytest

from lmforge.corpus.sources.document import Reading
from lmforge.corpus.sources.kinds import parts
from lmforge.corpus.sources.records import BrokenRecord, document_of, read_jsonl
from lmforge.recipe import Source


def test_fields_of_a_record(tmp_path: Path) -> None:
    reading = Reading(Source(kind="jsonl", path=tmp_path, text_field="body"), Counter())
    record = {
        "body": "b",
        "id": 3,
        "genre": "news",
        "url": "u",
        "nested": [1],
        "long": "x" * 300,
        "meta": {"k": 1},
        "source": "s",
    }
    assert document_of(record, reading, "f:1") == {
        "id": "3",
        "text": "b",
        "source": f"jsonl:{tmp_path.name}",
        "genre": "unknown",
        "meta": {"columns": {"genre": "news", "url": "u", "meta": {"k": 1}, "source": "s"}},
    }
    assert document_of({"body": None, "genre": "odd"}, reading, "f:1")["genre"] == "unknown"
    assert document_of({"body": None}, reading, "f:1")["id"] == "f:1"


def test_a_conversation_is_kept_and_its_words_are_the_text(tmp_path: Path) -> None:
    reading = Reading(Source(kind="jsonl", path=tmp_path), Counter())
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}, {"text": "!"}]},
    ]
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    document = document_of({"messages": messages, "id": "c"}, reading, "f:1")
    assert (document["text"], document["meta"]) == ("Hello\n\nHi!", {"messages": said})
    assert document_of({"messages": messages, "text": "t"}, reading, "f:1")["meta"] == {}  # the text field comes first


@pytest.mark.parametrize(
    "message",
    [{"content": "x"}, {"role": "user"}, {"role": "user", "content": 3}, {"role": "user", "content": [{}]}, "x"],
)
def test_what_is_no_message_is_refused(tmp_path: Path, message: object) -> None:
    reading = Reading(Source(kind="jsonl", path=tmp_path), Counter())
    with pytest.raises(BrokenRecord, match=r"^messages\[1\] is no message like"):
        document_of({"messages": [{"role": "user", "content": "a"}, message]}, reading, "f:1")


@pytest.mark.parametrize(
    "line", [b'{"text": NaN, "text": "last wins"}', b'{"text": "\\ud83d\\ude00 \\ud800"}', b'{"text": "x", "n": 1e999}']
)
def test_what_the_standard_library_reads_is_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    source = Source(kind="jsonl", path=path)
    [document] = read_jsonl(Reading(source, Counter()), parts(source)[0])
    assert document["text"]
