"""Sentence pairs as documents: JSONL with a field for each of two languages; each pair becomes a document in either direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmforge.corpus.document import Document, Reading
from lmforge.corpus.files import Part
from lmforge.corpus.records import BrokenRecord, read_lines
from lmforge.corpus.translate import one_line, parallel_document


def read_parallel(reading: Reading, part: Part) -> Iterator[Document]:
    """Two documents for each line; a pair with an empty side is passed over and counted."""
    return read_lines(reading, part, lambda record, name: _pair(record, name, reading))


def _pair(record: dict[str, Any], name: str, reading: Reading) -> list[Document]:
    languages = reading.source.languages
    assert languages is not None  # the recipe's check
    sides = [(language, _side(record, language)) for language in languages]
    if not all(text for _, text in sides):
        reading.notices["passed over: pair with an empty side"] += 1
        return []
    documents = []
    for (first, given), (second, wanted) in (sides, sides[::-1]):
        text, meta = parallel_document(given, wanted, first, second)
        documents.append(reading.document(f"{name}:{first}-{second}", text, meta=meta))
    return documents


def _side(record: dict[str, Any], language: str) -> str:
    text = record.get(language, "" if language in record else 0)
    if not isinstance(text, str | None):
        found = f"field '{language}' is a {type(text).__name__}, not a string" if language in record else f"no field '{language}'"
        raise BrokenRecord(f"{found}; set the source's languages to the fields that hold the two sentences")
    return one_line(text or "")
