"""Where documents come from: this Python's own library, a folder of texts, JSONL, Parquet.

    for document in iter_documents(source):
        document["id"], document["text"]

Files are visited in the order of their relative paths, so the same files give the same documents on every file system.
Everything streams: memory holds one document, one block of lines or one batch of rows at a time.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib
import json
import os
import platform
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_args

from lmforge.corpus.decode import FALLBACK, Binary, encoding_of, lines_of, unreadable
from lmforge.errors import InputError
from lmforge.recipe import Genre, Source


class Document(TypedDict):
    """One text and what is known of it; one line of a corpus file."""

    id: str
    text: str
    source: str
    genre: str
    meta: dict[str, Any]


class _File(NamedTuple):
    name: str  # relative to the source's root, "/" between parts
    path: Path
    size: int
    mtime_ns: int


PROSE = frozenset((".txt", ".text", ".md", ".markdown"))
MARKUP = frozenset((".rst", ".tex", ".org", ".adoc"))
CODE = frozenset((
    ".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cs", ".java", ".kt", ".scala", ".js",
    ".mjs", ".jsx", ".ts", ".tsx", ".go", ".rs", ".rb", ".php", ".pl", ".pm", ".lua", ".sh", ".bash", ".zsh", ".fish", ".sql",
    ".swift", ".m", ".mm", ".r", ".R", ".jl", ".hs", ".ml", ".mli", ".fs", ".el", ".lisp", ".scm", ".clj", ".ex", ".exs",
    ".erl", ".dart", ".zig", ".nim", ".d", ".f90", ".f", ".for", ".asm", ".s", ".S", ".v", ".vhd", ".sv", ".ps1", ".bat",
    ".cmake", ".mk", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".proto", ".css", ".vim", ".tcl", ".awk",
))  # fmt: skip
JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet", ".pq")
NOT_TEXTS = frozenset(("__pycache__", "node_modules"))
NOT_LIBRARY = frozenset(("site-packages", "dist-packages", "__pycache__"))

CUT_ABOVE = 256 * 1024  # bytes: a prose file beyond this is cut into documents, so that a single book can be split and shuffled
PART = 64 * 1024  # characters: where to look for the next blank line
LARGEST_CODE = 64 * 1024 * 1024  # bytes: source files beyond this are data
_LONGEST_META = 200  # characters of a string field kept beside the text
_BATCH = 256  # Parquet rows read at once


def iter_documents(source: Source, notices: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of `source`, in a fixed order; `notices` counts what was passed over or repaired, by name.

    Raises:
        InputError: a path does not exist, may not be read, holds no texts; a text file is binary; a line is broken (FILE:LINE);
            a compressed or Parquet file is truncated (and how far it could be read).
    """
    counted: Counter[str] = Counter() if notices is None else notices
    kinds: dict[str, Callable[[Source, Counter[str]], Iterator[Document]]] = {
        "python-library": _library, "folder": _folder, "jsonl": _jsonl, "parquet": _parquet,
    }  # fmt: skip
    return kinds[source.kind](source, counted)


def fingerprint(source: Source) -> str:
    """SHA-256 over (relative path, size, mtime) of the files `source` would read: changes when they do. Reads no contents.

    Raises:
        InputError: as `iter_documents`, where the files cannot be listed.
    """
    digest = hashlib.sha256(platform.python_version().encode() if source.kind == "python-library" else b"")
    for file in _files(source, Counter()):
        digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode())
    return digest.hexdigest()


def expected_bytes(source: Source) -> int | None:
    """About how many bytes of text `source` holds, from the files' sizes; None where compression hides it."""
    files = _files(source, Counter())
    packed = source.kind == "parquet" or any(file.name.endswith((".gz", ".zst")) for file in files)
    return None if packed else sum(file.size for file in files)


def source_name(source: Source) -> str:
    """The `source` field of its documents: the kind and the last part of the path, which names no machine's folders."""
    return source.kind if source.path is None else f"{source.kind}:{source.path.name}"


# Listing


def _files(source: Source, notices: Counter[str]) -> list[_File]:
    """The files of `source` in order; what is passed over is counted."""
    if source.kind == "python-library":
        root = Path(sysconfig.get_path("stdlib"))
        if not root.is_dir():
            raise InputError(f"{root}: not a folder, though this Python's library should lie there; use another source kind")
        # What else lies there is no news. The topics come as documents of their own.
        files = _walk(root, root, (".py", ".txt", ".rst"), Counter(), NOT_LIBRARY)
        return sorted(file for file in files if file.name != "pydoc_data/topics.py")
    assert source.path is not None  # the recipe's check
    suffixes = {"jsonl": JSONL, "parquet": PARQUET}.get(source.kind, tuple(PROSE | MARKUP | CODE))
    found = []
    matches = _matches(source.path)
    base = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in matches]))
    for path in matches:
        if path.is_dir():
            found += _walk(path, base, suffixes, notices, NOT_TEXTS)
        else:
            found.append(_stat(path, base))
    if not found:
        passed = ", ".join(f"{count} {what}" for what, count in notices.most_common(3))
        wanted = " ".join(suffixes) if len(suffixes) < 9 else ".txt .md .rst .py … (text and source code)"
        raise InputError(
            f"{source.path}: no {source.kind} files in it ({passed or 'it is empty'}); expected files ending in {wanted}"
        )
    return sorted(found)


def _matches(path: Path) -> list[Path]:
    """The path itself, or what it stands for as a pattern."""
    try:
        if path.exists():
            return [path]
    except OSError as error:
        raise unreadable(path, error) from error
    if glob.has_magic(str(path)):
        if found := sorted(map(Path, glob.glob(str(path), recursive=True))):
            return found
        raise InputError(f"{path}: no file matches this pattern; correct the source's path in the recipe")
    raise InputError(f"{path}: does not exist; correct the source's path in the recipe")


def _walk(root: Path, base: Path, suffixes: Sequence[str], notices: Counter[str], skipped: frozenset[str]) -> list[_File]:
    """Files below `root` with one of `suffixes`, named from `base`; hidden ones and folders named in `skipped` are left out."""

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or root), error) from error

    wanted, found = tuple(suffixes), []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not name.endswith(wanted):
                notices[f"ignored: {'hidden' if name.startswith('.') else path.suffix or 'no suffix'}"] += 1
            elif path.is_symlink() and not path.exists():
                notices["ignored: broken link"] += 1
            else:
                found.append(_stat(path, base))
    return found


def _stat(path: Path, base: Path) -> _File:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file; remove it or leave it out of the source")
    name = os.fsencode(path.relative_to(base).as_posix()).decode("utf-8", "replace")
    return _File(name, path, status.st_size, status.st_mtime_ns)


# Kinds


def _library(source: Source, notices: Counter[str]) -> Iterator[Document]:
    code = "code" if source.genre == "unknown" else source.genre
    name = source_name(source)
    for file in _files(source, notices):
        try:
            encoding = encoding_of(file.path)
            if encoding == FALLBACK:
                raise Binary("of an unknown encoding")
            text = file.path.read_text(encoding=encoding)
        except Binary:  # the library carries test data that is wrong on purpose
            notices["ignored: not readable as text"] += 1
        except OSError as error:
            raise unreadable(file.path, error) from error
        else:
            genre = code if file.path.suffix == ".py" else "technical"
            yield Document(id=file.name, text=text, source=name, genre=genre, meta={})
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        notices["missing: pydoc_data"] += 1
        return
    for topic, text in sorted(topics.items()):
        yield Document(id=f"pydoc_data.topics/{topic}", text=text, source=name, genre="technical", meta={})


def _folder(source: Source, notices: Counter[str]) -> Iterator[Document]:
    name = source_name(source)
    for file in _files(source, notices):
        suffix = file.path.suffix
        genre = "code" if source.genre == "unknown" and suffix in CODE else source.genre
        meta: dict[str, Any] = {}
        try:
            encoding = encoding_of(file.path)
            if encoding == FALLBACK:
                meta["encoding"] = f"{FALLBACK} (fallback)"
                notices[f"read as {FALLBACK}, not being UTF-8"] += 1
            if suffix in CODE and file.size > LARGEST_CODE:
                notices["ignored: source file beyond 64 MiB"] += 1
            elif suffix not in CODE | MARKUP and file.size > CUT_ABOVE:
                for number, part in enumerate(_parts(file.path, encoding), 1):
                    yield Document(id=f"{file.name}#{number}", text=part, source=name, genre=genre, meta={**meta, "part": number})
            else:
                yield Document(id=file.name, text=file.path.read_text(encoding=encoding), source=name, genre=genre, meta=meta)
        except Binary as error:
            raise InputError(f"{file.path}: binary data in a text file ({error}); remove it or give it another suffix") from error
        except OSError as error:
            raise unreadable(file.path, error) from error


def _parts(path: Path, encoding: str) -> Iterator[str]:
    """Pieces of about `PART` characters, cut at a blank line, else a line end, else a space, that lie within the next `PART`."""
    with path.open(encoding=encoding) as file:
        text = file.read(2 * PART)
        while len(text) >= 2 * PART:
            cut = next((at + len(mark) for mark in ("\n\n", "\n", " ") if (at := text.find(mark, PART)) >= 0), 2 * PART)
            yield text[:cut]
            text = text[cut:] + file.read(cut)
        if text:
            yield text


def _jsonl(source: Source, notices: Counter[str]) -> Iterator[Document]:
    for file in _files(source, notices):
        for number, line in lines_of(file.path):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                where = f"{file.path}:{number}"
                yield _document(_parsed(line, where), source, f"{file.name}:{number}", where)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (at byte {error.start + 1} of the line); convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{where}: not valid JSON ({cause}{at}); correct or remove this line") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: a {type(record).__name__}, not an object like {{\"text\": …}}; correct or remove this line")
    return record


def _document(record: dict[str, Any], source: Source, fallback_id: str, where: str) -> Document:
    """A document from a record that carries its text in `source.text_field`; a null text is an empty one."""
    if source.text_field not in record:
        raise InputError(f"{where}: no field '{source.text_field}'{_nearest(source.text_field, list(record))}")
    text = record[source.text_field]
    if not isinstance(text, str | None):
        cause = f"field '{source.text_field}' is a {type(text).__name__}, not a string"
        raise InputError(f"{where}: {cause}; set the source's text_field")
    given, genre, meta = record.get("id"), str(record.get("genre")), record.get("meta")
    kept = dict(meta) if isinstance(meta, dict) else {}
    for key, value in record.items():
        if key not in (source.text_field, "id", "genre", "meta", "source") and _is_small(value):
            kept[key] = value
    return Document(
        id=str(given) if isinstance(given, str | int) else fallback_id,
        text=text or "",
        source=source_name(source),
        genre=genre if source.genre == "unknown" and genre in get_args(Genre) else source.genre,
        meta=kept,
    )


def _is_small(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST_META)


def _nearest(wanted: str, fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, fields, n=1, cutoff=0.0)
    return f"; did you mean '{close[0]}'? set the source's text_field" if close else "; set the source's text_field"


def _parquet(source: Source, notices: Counter[str]) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    for file in _files(source, notices):
        row = 0
        try:
            with pyarrow.parquet.ParquetFile(file.path) as table:
                columns = table.schema_arrow.names
                if source.text_field not in columns:
                    raise InputError(f"{file.path}: no column '{source.text_field}'{_nearest(source.text_field, columns)}")
                simple = [field.name for field in table.schema_arrow if _is_simple(field.type)]
                if source.text_field not in simple:
                    cause = f"column '{source.text_field}' holds {table.schema_arrow.field(source.text_field).type}, not strings"
                    raise InputError(f"{file.path}: {cause}; set the source's text_field")
                for batch in table.iter_batches(batch_size=_BATCH, columns=simple):
                    for record in batch.to_pylist():
                        row += 1
                        yield _document(record, source, f"{file.name}:{row}", f"{file.path} row {row}")
        except pyarrow.ArrowException as error:
            raise _not_parquet(file.path, row, str(error)) from error
        except OSError as error:  # Arrow reports damaged pages as OSError without an errno
            if error.errno is None:
                raise _not_parquet(file.path, row, str(error)) from error
            raise unreadable(file.path, error) from error


def _not_parquet(path: Path, row: int, cause: str) -> InputError:
    first = cause.strip().split("\n")[0].rstrip(".")[:160]
    return InputError(f"{path}: truncated, damaged or not Parquet ({first}); readable up to row {row}; fetch the file again")


def _is_simple(kind: Any) -> bool:
    """Columns worth reading beside the text: strings and numbers (a nested one may dwarf the text)."""
    import pyarrow.types as types

    value = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(value) or types.is_large_string(value) or types.is_integer(value) or types.is_floating(value))
