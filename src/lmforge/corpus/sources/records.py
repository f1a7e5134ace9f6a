"""Records that carry a text or a conversation as documents: JSONL (plain or compressed) and Parquet."""

from __future__ import annotations

import difflib
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from lmforge.corpus.sources.conversation import LISTS, PAIRS, NotMessages, conversation_of, shape_of
from lmforge.corpus.sources.decode import line_number, located_lines, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import SPLIT_ABOVE, File, SourcePart, byte_ranges, cut, files_of
from lmforge.corpus.sources.unfold import COMPRESSED
from lmforge.corpus.sources.wide import is_wide
from lmforge.errors import InputError
from lmforge.recipe import Source

JSONL = tuple(
    [f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in ("", *COMPRESSED)]
    + [f".json{packed}" for packed in COMPRESSED]
)
PARQUET = (".parquet", ".pq")
_LONGEST_META = 200  # characters of a string field kept beside the text
_BATCH = 256  # Parquet rows read at once


# fields that hold a text, in the order in which they are looked for
_TEXTS = ("text", "content", "body", "article", "document", "raw_content", "code", "story")


_ONE_A_LINE = "put one object on each line (jq -c '.[]?' makes that of an array, jq -c . of objects over lines)"


class BrokenRecord(Exception):
    """A record that holds no document; the message says why and how to mend it."""


def document_of(record: dict[str, Any], reading: Reading, fallback_id: str) -> Document:
    """A document from a record: its text is in the source's `text_field` (a null text is an empty one); or that names a
    list of messages, or it is missing and the record is a conversation in a known shape (see
    `lmforge.corpus.sources.conversation`). Then the text is the messages' contents, and the messages are kept, in one
    form, for the tokens stage.

    The record's other fields are the user's: small ones are kept in `meta["columns"]`, by their own names.
    """
    field = reading.source.text_field
    try:
        messages = conversation_of(record, field)
    except NotMessages as error:
        raise BrokenRecord(str(error)) from error
    if messages is not None:
        text: Any = "\n\n".join(message["content"] for message in messages)
        used: tuple[str, ...] = (field,) if field in record else shape_of(record) or ()
    elif field in record:
        text, used = record[field], (field,)
    else:
        raise BrokenRecord(f"no field '{field}'{_nearest(field, list(record))}")
    if not isinstance(text, str | None):
        raise BrokenRecord(f"field '{field}' is a {type(text).__name__}, not a string; set the source's text_field")
    given = record.get("id")
    columns = {
        key: small
        for key, value in record.items()
        if key not in used and not (key == "id" and _is_name(value)) and (small := _small(value)) is not None
    }
    meta: dict[str, Any] = {"columns": columns} if columns else {}
    if messages:
        meta["messages"] = messages
    return reading.document(str(given) if _is_name(given) else fallback_id, text or "", None, meta)


def text_field_of(record: dict[str, Any]) -> str:
    """The `text_field` that fits records like this one: a conversation's, so that its answers are learned as answers
    (of a question and answer in two fields it is left at "text", which such a record does not have); else "text" or
    another usual name; else the longest string's."""
    shape = shape_of(record)
    if shape is not None and (len(shape) == 1 or not isinstance(record.get("text"), str)):
        return shape[0] if len(shape) == 1 else "text"
    strings = {name: value for name, value in record.items() if isinstance(value, str)}
    usual = next((name for name in _TEXTS if name in strings), None)
    return usual or max(strings, key=lambda name: len(strings[name]), default="text")


def _is_name(value: Any) -> bool:
    """Whether an `id` can be a document's: a number, or a string that is not too long."""
    return isinstance(value, int | str) and not isinstance(value, bool) and value != ""


def _small(value: Any) -> Any:
    """A value worth keeping beside the text: a number, a short string, or what is such in a mapping; else None."""
    if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST_META):
        return value
    if isinstance(value, dict):
        kept = {
            str(key): each for key, each in value.items() if not isinstance(each, dict) and _small(each) is not None
        }
        return kept or None
    return None


def _nearest(wanted: str, fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, fields, n=1, cutoff=0.0)
    return f"; did you mean '{close[0]}'? set the source's text_field" if close else "; set the source's text_field"


# JSONL


def jsonl_files(source: Source, notices: Counter[str]) -> list[File]:
    """Files of one JSON object a line."""
    return files_of(source, JSONL, notices)


def jsonl_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered; a large plain file in ranges of bytes."""
    files = jsonl_files(source, notices)
    plain = [file for file in files if not file.name.lower().endswith(COMPRESSED)]
    large = [file for file in plain if file.size > SPLIT_ABOVE and not is_wide(file.path)]
    return cut(files, [(file, byte_ranges(file)) for file in large])


def read_jsonl(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each line that starts in the part. Named after its line, or in a part of a file after its byte:
    FILE@BYTE."""
    return read_lines(reading, part, lambda record, name: [document_of(record, reading, name)])


def read_lines(
    reading: Reading, part: SourcePart, make: Callable[[dict[str, Any], str], list[Document]]
) -> Iterator[Document]:
    """The documents that `make(object, name)` gives for each line; it raises `BrokenRecord` for one that holds none."""
    for file in part.files:
        whole, note = part.stop is None, functools.partial(reading.encodings.add, name=file.name)
        located = located_lines(file.path, part.start, part.stop, reading.damaged, _is_record, note)
        for number, offset, line in located:
            if not line.strip():
                continue
            try:
                documents = make(_parsed(line), f"{file.name}:{number}" if whole else f"{file.name}@{offset}")
            except BrokenRecord as error:
                where = number if whole else line_number(file.path, offset)
                reading.damaged("broken JSONL line", InputError(f"{file.path}:{where}: {error}"))
            else:
                yield from documents


def _is_record(line: bytes) -> bool:
    """Whether a line beside damage is whole: a part of an object is none."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:  # which is stricter (NaN, lone surrogates, depth); the standard library decides
        record = _parsed_slowly(line)
    if not isinstance(record, dict):
        mend = _ONE_A_LINE if isinstance(record, list) else "correct or remove this line"
        raise BrokenRecord(f'a {type(record).__name__}, not an object like {{"text": …}}; {mend}')
    return record


def _parsed_slowly(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"not UTF-8 (at byte {error.start + 1} of the line); convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        spread = line.lstrip()[:1] == b"[" or line.strip() == b"{"
        mend = _ONE_A_LINE if spread else "correct or remove this line"
        raise BrokenRecord(f"not valid JSON ({cause}{at}); {mend}") from error


# Parquet


def parquet_files(source: Source, notices: Counter[str]) -> list[File]:
    """Parquet files."""
    return files_of(source, PARQUET, notices)


def parquet_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
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


def read_parquet(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each row, named after its number in the file. A row group that is damaged is passed over and
    counted; the next one is read."""
    import pyarrow
    import pyarrow.parquet

    for file in part.files:
        row = [0]
        try:
            with pyarrow.parquet.ParquetFile(file.path, page_checksum_verification=True) as table:
                columns = _columns(table.schema_arrow, reading.source.text_field, file.path)
                groups = range(part.start, table.num_row_groups if part.stop is None else part.stop)
                row[0] = sum(table.metadata.row_group(number).num_rows for number in range(part.start))
                for group in groups:
                    end = row[0] + table.metadata.row_group(group).num_rows
                    try:
                        yield from _rows(reading, file, table.iter_batches(_BATCH, [group], columns), row)
                        cause = f"row group {group} ends before its {end} rows" if row[0] < end else ""
                    except (pyarrow.ArrowException, OSError) as error:
                        cause = _cause_of_damage(error, file.path)
                    if cause:
                        refusal = _not_parquet(file.path, row[0], cause)
                        reading.damaged("row in a damaged part of a Parquet file", refusal, end - row[0])
                    row[0] = end
        except (pyarrow.ArrowException, OSError) as error:
            cause = _cause_of_damage(error, file.path)
            reading.damaged("truncated or damaged Parquet", _not_parquet(file.path, row[0], cause))


def _cause_of_damage(error: Exception, path: Path) -> str:
    """What Arrow says; it reports damaged pages as OSError without an errno."""
    if isinstance(error, OSError) and error.errno is not None:
        raise unreadable(path, error) from error
    return str(error)


def _columns(schema: Any, field: str, path: Path) -> list[str]:
    """The columns to read: those of the text or the conversation, and small ones beside them."""
    names = schema.names
    simple = [column.name for column in schema if _is_simple(column.type)]
    nested = [
        name
        for name in dict.fromkeys((field, *LISTS, *itertools.chain(*PAIRS)))
        if name in names and _is_list_of_structs(schema.field(name).type)
    ]
    used = (field,) if field in names else shape_of([name for name in names if name in simple or name in nested])
    if used is None:
        raise InputError(f"{path}: no column '{field}'{_nearest(field, names)}")
    if field in names and field not in simple and field not in nested:
        cause = f"column '{field}' holds {schema.field(field).type}, not strings"
        raise InputError(f"{path}: {cause}; set the source's text_field")
    return [name for name in names if name in simple or name in used]


def _rows(reading: Reading, file: File, batches: Iterator[Any], row: list[int]) -> Iterator[Document]:
    """The documents of one row group; `row[0]` is the number of the last row read."""
    for batch in batches:
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
        types.is_string(value)
        or types.is_large_string(value)
        or types.is_string_view(value)
        or types.is_integer(value)
        or types.is_floating(value)
        or types.is_boolean(value)
    )


def _is_list_of_structs(kind: Any) -> bool:
    import pyarrow.types as types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_struct(kind.value_type))
