"""Text files as documents: a folder of prose, markup and source code, and this Python's own library."""

from __future__ import annotations

import importlib
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lmforge.corpus.sources.decode import encoding_of, text_of, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.encodings import Binary, NotText, UnknownEncoding
from lmforge.corpus.sources.files import File, SourcePart, files_of, gathered, walk
from lmforge.corpus.sources.unfold import COMPRESSED
from lmforge.errors import InputError
from lmforge.recipe import Source

PROSE = frozenset((".txt", ".text", ".md", ".markdown"))
MARKUP = frozenset((".rst", ".tex", ".org", ".adoc"))
CODE = frozenset(
    (
        ".py",
        ".pyi",
        ".pyx",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cxx",
        ".hpp",
        ".hh",
        ".cu",
        ".cs",
        ".java",
        ".kt",
        ".scala",
        ".js",
        ".mjs",
        ".jsx",
        ".ts",
        ".tsx",
        ".go",
        ".rs",
        ".rb",
        ".php",
        ".pl",
        ".pm",
        ".lua",
        ".sh",
        ".bash",
        ".zsh",
        ".fish",
        ".sql",
        ".swift",
        ".m",
        ".mm",
        ".r",
        ".R",
        ".jl",
        ".hs",
        ".ml",
        ".mli",
        ".fs",
        ".el",
        ".lisp",
        ".scm",
        ".clj",
        ".ex",
        ".exs",
        ".erl",
        ".dart",
        ".zig",
        ".nim",
        ".d",
        ".f90",
        ".f",
        ".for",
        ".asm",
        ".s",
        ".S",
        ".v",
        ".vhd",
        ".sv",
        ".ps1",
        ".bat",
        ".cmake",
        ".mk",
        ".toml",
        ".yaml",
        ".yml",
        ".ini",
        ".cfg",
        ".proto",
        ".css",
        ".vim",
        ".tcl",
        ".awk",
    )
)
PACKED = tuple(f".{name}{packed}" for name in ("txt", "text", "md") for packed in COMPRESSED)
NOT_LIBRARY = frozenset(("site-packages", "dist-packages", "__pycache__"))
TOPICS = "pydoc_data.topics"
# bytes: a prose file beyond this is cut into documents, so that a single book can be split and shuffled
CUT_ABOVE = 256 * 1024
PIECE = 64 * 1024  # characters: where to look for the next blank line
LARGEST_CODE = 64 * 1024 * 1024  # bytes: source and markup files beyond this are data


# A folder


def folder_files(source: Source, notices: Counter[str]) -> list[File]:
    """Prose, markup and source code, by suffix."""
    return files_of(source, (*(PROSE | MARKUP | CODE), *PACKED), notices)


def folder_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered."""
    return gathered(folder_files(source, notices))


def read_folder(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each file, or several of a long prose file."""
    for file in part.files:
        try:
            yield from _file(reading, file)
        except Binary as error:
            message = f"{file.path}: binary data in a text file ({error}); remove it or give it another suffix"
            reading.damaged("binary data in a text file", InputError(message))
        except UnknownEncoding as error:
            message = f"{file.path}: {error}; convert it to UTF-8 (iconv -f ENCODING -t UTF-8) or remove it"
            reading.damaged("text file of unknown encoding", InputError(message))
        except OSError as error:
            raise unreadable(file.path, error) from error


def _file(reading: Reading, file: File) -> Iterator[Document]:
    suffix, meta, unknown = file.path.suffix.lower(), dict[str, Any](), reading.source.genre == "unknown"
    if suffix in CODE | MARKUP and file.size > LARGEST_CODE:
        reading.notices["ignored: source file beyond 64 MiB"] += 1
        return
    encoding = encoding_of(file.path)
    reading.note_encoding(encoding, file.name)
    if encoding.detected:
        meta["encoding"] = encoding.label
    text = text_of(file.path, encoding, reading.damaged)
    if file.name.lower().endswith(PACKED) or (suffix not in CODE | MARKUP and file.size > CUT_ABOVE):
        for number, piece in enumerate(_pieces(text), 1):
            yield reading.document(f"{file.name}#{number}", piece, meta={**meta, "part": number})
    else:
        yield reading.document(file.name, "".join(text), "code" if unknown and suffix in CODE else None, meta)


def _pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Pieces of about `PIECE` characters, cut at a blank line, else a line end, else a space, that lie within the next
    `PIECE`."""
    text = ""
    for chunk in chunks:
        text += chunk
        while len(text) >= 2 * PIECE:
            ends = (at + len(mark) for mark in ("\n\n", "\n", " ") if (at := text.find(mark, PIECE, 2 * PIECE)) >= 0)
            end = next(ends, 2 * PIECE)
            yield text[:end]
            text = text[end:]
    if text:
        yield text


# This Python's own library


def library_files(source: Source, notices: Counter[str]) -> list[File]:
    """Its sources and texts; the help topics come as documents of their own."""
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise InputError(
            f"{root}: not a folder, though this Python's library should lie there; use another source kind"
        )
    files = walk(root, root, (".py", ".txt", ".rst"), Counter(), NOT_LIBRARY)  # what else lies there is no news
    return sorted(file for file in files if file.name != "pydoc_data/topics.py")


def library_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered, and at last the help topics."""
    return [*gathered(library_files(source, notices)), SourcePart(TOPICS, ())]


def read_library(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each file or topic. Unreadable files are counted: the library carries test data that is wrong on
    purpose."""
    if part.name == TOPICS:
        yield from _topics(reading)
    code = "code" if reading.source.genre == "unknown" else reading.source.genre
    for file in part.files:
        try:
            encoding = encoding_of(file.path)
            if encoding.detected or encoding.broken:
                raise UnknownEncoding("neither UTF-8 nor what it declares")
            text = "".join(text_of(file.path, encoding))
        except NotText:
            reading.notices["ignored: not readable as text"] += 1
        except OSError as error:
            raise unreadable(file.path, error) from error
        else:
            yield reading.document(file.name, text, code if file.path.suffix == ".py" else "technical")


def _topics(reading: Reading) -> Iterator[Document]:
    try:
        topics: dict[str, str] = importlib.import_module(TOPICS).topics
    except ImportError:
        reading.notices["missing: pydoc_data"] += 1
        return
    for topic, text in sorted(topics.items()):
        yield reading.document(f"{TOPICS}/{topic}", text, "technical")
