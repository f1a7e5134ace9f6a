"""Records that carry a text as documents: JSONL (plain, gzip, Zstandard) and Parquet."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import orjson

from lmforge.corpus.sources.decode import COMPRESSED, line_number, located_lines, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import SPLIT_ABOVE, File, Part, byte_ranges, cut, files_of
from lmforge.errors import InputError
from lmforge.recipe import Genre, Source

JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet", ".pq")
_LONGEST_META = 200  # characters of a string field kept beside the text
_BATCH = 256  # Parquet rows read at once
_GENRES = frozenset(get_args(Genre))


class BrokenRecord(Exception):
    """A record that holds no document; the message says why and how to mend it."""


def document_of(record: dict[str, Any], reading: Reading, fallback_id: str) -> Document:
    """A document from a record that carries its text in the source's `text_field` (a null text is an empty one), or a
    conversation in `messages`: its text is the messages' contents, and the messages are kept for the tokens stage."""
    source = reading.source
    conversation = record.get("messages") if source.text_field not in record else None
    if isinstance(conversation, list):
        record = {**record, source.text_field: _contents(conversation)}
    elif source.text_field not in record:
        raise BrokenRecord(f"no field '{source.text_field}'{_nearest(source.text_field, list(record))}")
    text = record[source.text_field]
    if not isinstance(text, str | None):
        raise BrokenRecord(
            f"field '{source.text_field}' is a {type(text).__name__}, not a string; set the source's text_field"
        )
    given, genre, meta = record.get("id"), record.get("genre"), record.get("meta")
    kept = dict(meta) if isinstance(meta, dict) else {}
    for key, value in record.items():
        if key not in (source.text_field, "id", "genre", "meta", "source") and _is_small(value):
            kept[key] = value
    if isinstance(conversation, list):
        kept["messages"] = conversation
    own = genre if source.genre == "unknown" and isinstance(genre, str) and genre in _GENRES else None
    return reading.document(str(given) if isinstance(given, str | int) else fallback_id, text or "", own, kept)


def _contents(messages: list[Any]) -> str:
    """What is said in a conversation, a blank line between the messages; a content is a string or a list of {"text": …}
    parts."""
    said = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) and isinstance(message.get("role"), str) else None
        listed = content if isinstance(content, list) else [{"text": content}]
        parts = [part.get("text") if isinstance(part, dict) else None for part in listed]
        if not all(isinstance(part, str) for part in parts):
            raise BrokenRecord(
                f'messages[{number}] is no message like {{"role": "user", "content": "Hello"}}; correct or remove it'
            )
        said.append("".join(map(str, parts)))
    return "\n\n".join(said)


def _is_small(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST_META)


def _nearest(wanted: str, fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, fields, n=1, cutoff=0.0)
    return f"; did you mean '{close[0]}'? set the source's text_field" if close else "; set the source's text_field"


# JSONL


def jsonl_files(source: Source, notices: Counter[str]) -> list[File]:
    """Files of one JSON object a line."""
    return files_of(source, JSONL, notices)


def jsonl_parts(source: Source, notices: Counter[str]) -> list[Part]:
    """Files, gathered; a large plain file in ranges of bytes."""
    files = jsonl_files(source, notices)
    large = [file for file in files if file.size > SPLIT_ABOVE and not file.name.endswith(COMPRESSED)]
    return cut(files, [(file, byte_ranges(file)) for file in large])


def read_jsonl(reading: Reading, part: Part) -> Iterator[Document]:
    """One document for each line that starts in the part. Named after its line, or in a part of a file after its byte:
    FILE@BYTE."""
    return read_lines(reading, part, lambda record, name: [document_of(record, reading, name)])


def read_lines(
    reading: Reading, part: Part, make: Callable[[dict[str, Any], str], list[Document]]
) -> Iterator[Document]:
    """The documents that `make(object, name)` gives for each line; it raises `BrokenRecord` for one that holds none."""
    for file in part.files:
        whole = part.stop is None
        for number, offset, line in located_lines(file.path, part.start, part.stop, reading.damaged):
            if not offset:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                documents = make(_parsed(line), f"{file.name}:{number}" if whole else f"{file.name}@{offset}")
            except BrokenRecord as error:
                where = number if whole else line_number(file.path, offset)
                reading.damaged("broken JSONL line", InputError(f"{file.path}:{where}: {error}"))
            else:
                yield from documents


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:  # which is stricter (NaN, lone surrogates, depth); the standard library decides
        record = _parsed_slowly(line)
    if not isinstance(record, dict):
        raise BrokenRecord(f'a {type(record).__name__}, not an object like {{"text": …}}; correct or remove this line')
    return record


def _parsed_slowly(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"not UTF-8 (at byte {error.start + 1} of the line); convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BrokenRecord(f"not valid JSON ({cause}{at}); correct or remove this line") from error


# Parquet


def parquet_files(source: Source, notices: Counter[str]) -> list[File]:
    """Parquet files."""
    return files_of(source, PARQUET, notices)


def parquet_parts(source: Source, notices: Counter[str]) -> list[Part]:
    """Files, gathered; a large file in ranges of row groups."""
    files = parquet_files(source, notices)
    return cut(
        files, [(file, ranges) for file in files if file.size > SPLIT_ABOVE and (ranges := _row_group_ranges(file))]
    )


def _row_group_ranges(file: File) -> list[tuple[int, int, int]]:
    """(first row group, the one after the last, bytes) of pieces near `SPLIT_ABOVE`; none where the file cannot be
    opened: reading it then says what is wrong."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            sizes = [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]
    except (pyarrow.ArrowException, OSError):
        return []
    ranges, start, held = [], 0, 0
    for number, size in enumerate(sizes, 1):
        held += size
        if held >= SPLIT_ABOVE or number == len(sizes):
            ranges.append((start, number, held))
            start, held = number, 0
    return ranges


def read_parquet(reading: Reading, part: Part) -> Iterator[Document]:
    """One document for each row, named after its number in the file."""
    import pyarrow

    for file in part.files:
        row = [0]
        try:
            yield from _rows(reading, file, part, row)
        except pyarrow.ArrowException as error:
            reading.damaged("truncated or damaged Parquet", _not_parquet(file.path, row[0], str(error)))
        except OSError as error:  # Arrow reports damaged pages as OSError without an errno
            if error.errno is not None:
                raise unreadable(file.path, error) from error
            reading.damaged("truncated or damaged Parquet", _not_parquet(file.path, row[0], str(error)))


def _rows(reading: Reading, file: File, part: Part, row: list[int]) -> Iterator[Document]:
    """The documents of one file or range of row groups; `row[0]` is the number of the last row read."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        columns, field = table.schema_arrow.names, reading.source.text_field
        if field not in columns:
            raise InputError(f"{file.path}: no column '{field}'{_nearest(field, columns)}")
        simple = [column.name for column in table.schema_arrow if _is_simple(column.type)]
        if field not in simple:
            cause = f"column '{field}' holds {table.schema_arrow.field(field).type}, not strings"
            raise InputError(f"{file.path}: {cause}; set the source's text_field")
        groups = range(part.start, table.num_row_groups if part.stop is None else part.stop)
        row[0] = sum(table.metadata.row_group(number).num_rows for number in range(part.start))
        for batch in table.iter_batches(batch_size=_BATCH, row_groups=groups, columns=simple):
            for record in batch.to_pylist():
                row[0] += 1
                try:
                    document = document_of(record, reading, f"{file.name}:{row[0]}")
                except BrokenRecord as error:
                    reading.damaged("broken Parquet row", InputError(f"{file.path} row {row[0]}: {error}"))
                else:
                    yield document


def _not_parquet(path: Path, row: int, cause: str) -> InputError:
    first = cause.strip().split("\n")[0].rstrip(".")[:160]
    return InputError(
        f"{path}: truncated, damaged or not Parquet ({first}); readable up to row {row}; fetch the file again"
    )


def _is_simple(kind: Any) -> bool:
    """Columns worth reading beside the text: strings and numbers (a nested one may dwarf the text)."""
    import pyarrow.types as types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(
        types.is_string(value) or types.is_large_string(value) or types.is_integer(value) or types.is_floating(value)
    )
