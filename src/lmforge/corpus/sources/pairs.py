"""Sentence pairs as documents: JSONL with a field for each of two languages; each pair becomes a document in either
direction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from lmforge.corpus.normalise import clean
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import SourcePart
from lmforge.corpus.sources.records import BrokenRecord, read_lines


def read_parallel(reading: Reading, part: SourcePart) -> Iterator[Document]:
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
        cause = (
            f"field '{language}' is a {type(text).__name__}, not a string"
            if language in record
            else f"no field '{language}'"
        )
        raise BrokenRecord(f"{cause}; set the source's languages to the fields that hold the two sentences")
    return one_line(text or "")


def one_line(text: str) -> str:
    """A sentence as the form holds it: cleaned, on one line."""
    return " ".join(clean(text).split())


def prompt_of(text: str, source: str, target: str) -> str:
    """What a translation model continues with the translation of `text` and a line end."""
    return f"<{source}> {one_line(text)}\n<{target}>"


def parallel_document(source_text: str, target_text: str, source: str, target: str) -> tuple[str, dict[str, Any]]:
    """(text, meta) of one sentence pair in one direction.

    meta: `languages` [source, target]; `loss_spans`, the characters that count (the translation, the space before it
    and the line end after it, so that a model learns to begin and to stop); `split_key`, equal for both directions,
    which keeps them in one split.
    """
    prompt = prompt_of(source_text, source, target)
    text = f"{prompt} {one_line(target_text)}\n"
    pair = sorted(((source, one_line(source_text)), (target, one_line(target_text))))
    key = hashlib.sha256(repr(pair).encode()).hexdigest()[:32]
    return text, {"languages": [source, target], "loss_spans": [[len(prompt), len(text)]], "split_key": key}
