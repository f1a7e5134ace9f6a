"""Source trees as documents: a file each, or the files of a repository joined; what no one wrote or reads is left out
and counted.

The rules are those of The Stack and StarCoder (Kocetkov et al. 2022, section 3; Li et al. 2023, "StarCoder: may the
source be with you!", section 3.2): vendored and generated files, long lines, too few letters; and files that hold a
licence and nothing else.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator

from lmforge.corpus.sources.decode import encoding_of, text_of, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.encodings import Binary, UnknownEncoding
from lmforge.corpus.sources.files import File, SourcePart, files_of, gathered
from lmforge.corpus.sources.texts import CODE
from lmforge.errors import InputError
from lmforge.recipe import Source

VENDORED = frozenset(
    (
        "node_modules",
        "bower_components",
        "vendor",
        "vendored",
        "_vendor",
        "third_party",
        "third-party",
        "thirdparty",
        "3rdparty",
        "external",
        "externals",
        "site-packages",
        "dist",
        "build",
        "target",
        "__pycache__",
        "Pods",
        "Carthage",
        "migrations",
    )
)
LARGEST = 1 << 20  # bytes; The Stack's bound
LONGEST_LINE, LONGEST_MEAN = 1000, 100  # characters
FEWEST_LETTERS = 0.25  # share of letters and digits among all characters
JOINED = 512 * 1024  # characters of files joined into one document
_GENERATED = re.compile(
    r"@generated|do not (?:edit|modify)|auto-?\s?generated|generated (?:by|from|code|file)|machine generated",
    re.IGNORECASE,
)
_HEAD = 1024  # characters in which a file says that it was generated
_COMMENT = re.compile(r"\s*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\"|''')")
_LICENCE = re.compile(r"licen[sc]e|copyright|spdx", re.IGNORECASE)
_MINIFIED = (".min.js", ".min.css", ".bundle.js")
_LANGUAGES = {
    "py": "python",
    "pyi": "python",
    "pyx": "cython",
    "c": "c",
    "h": "c",
    "cc": "c++",
    "cpp": "c++",
    "cxx": "c++",
    "hpp": "c++",
    "hh": "c++",
    "cu": "cuda",
    "cs": "c#",
    "java": "java",
    "kt": "kotlin",
    "scala": "scala",
    "js": "javascript",
    "mjs": "javascript",
    "jsx": "javascript",
    "ts": "typescript",
    "tsx": "typescript",
    "go": "go",
    "rs": "rust",
    "rb": "ruby",
    "php": "php",
    "pl": "perl",
    "pm": "perl",
    "lua": "lua",
    "sh": "shell",
    "bash": "shell",
    "zsh": "shell",
    "fish": "shell",
    "sql": "sql",
    "swift": "swift",
    "m": "objective-c",
    "mm": "objective-c",
    "r": "r",
    "R": "r",
    "jl": "julia",
    "hs": "haskell",
    "ml": "ocaml",
    "mli": "ocaml",
    "fs": "f#",
    "el": "lisp",
    "lisp": "lisp",
    "scm": "scheme",
    "clj": "clojure",
    "ex": "elixir",
    "exs": "elixir",
    "erl": "erlang",
    "dart": "dart",
    "zig": "zig",
    "nim": "nim",
    "d": "d",
    "f90": "fortran",
    "f": "fortran",
    "for": "fortran",
    "asm": "assembly",
    "s": "assembly",
    "S": "assembly",
    "v": "verilog",
    "sv": "systemverilog",
    "vhd": "vhdl",
    "ps1": "powershell",
    "bat": "batch",
    "cmake": "cmake",
    "mk": "makefile",
    "toml": "toml",
    "yaml": "yaml",
    "yml": "yaml",
    "ini": "ini",
    "cfg": "ini",
    "proto": "protobuf",
    "css": "css",
    "vim": "vimscript",
    "tcl": "tcl",
    "awk": "awk",
}


def language_of(name: str) -> str:
    """The programming language of a file, by its suffix."""
    suffix = name.rpartition(".")[2]
    return _LANGUAGES.get(suffix) or _LANGUAGES.get(suffix.lower(), "unknown")


def code_files(source: Source, notices: Counter[str]) -> list[File]:
    """Source files outside vendored folders."""
    files = files_of(source, tuple(CODE), notices, frozenset(("__pycache__",)))
    kept = [file for file in files if VENDORED.isdisjoint(file.name.split("/")[:-1])]
    if len(kept) < len(files):
        notices["ignored: vendored or built"] += len(files) - len(kept)
    if not kept:
        raise InputError(
            f"{source.path}: all its {len(files)} source files lie in vendored or build folders; use kind 'folder' to "
            "read them"
        )
    return kept


def code_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered; where files are joined, whole repositories."""
    files = code_files(source, notices)
    if source.join is None:
        return gathered(files)
    sizes = [(list(group), name) for name, group in itertools.groupby(files, _repository)]
    return [
        part._replace(name=name)
        for group, name in sizes
        for part in [SourcePart(name, tuple(group), bytes=sum(file.size for file in group))]
    ]


def _repository(file: File) -> str:
    """The first folder of a file's name: sources hold one folder for each repository."""
    return file.name.partition("/")[0] if "/" in file.name else ""


def read_code(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each file worth reading, or as few as hold a repository's files, each under a line with its
    name."""
    texts = _texts(reading, part)
    if reading.source.join is None:
        for file, text in texts:
            yield reading.document(file.name, text, meta={"programming_language": language_of(file.name)})
        return
    number, held, size, languages = 1, list[str](), 0, Counter[str]()
    for file, text in texts:
        if held and size + len(text) > JOINED:
            yield _joined(reading, part, number, held, languages)
            number, held, size, languages = number + 1, [], 0, Counter()
        held.append(f"==== {file.name} ====\n{text.strip()}\n")
        size += len(held[-1])
        languages[language_of(file.name)] += len(text)
    if held:
        yield _joined(reading, part, number, held, languages)


def _joined(reading: Reading, part: SourcePart, number: int, texts: list[str], languages: Counter[str]) -> Document:
    meta = {"repository": part.name, "files": len(texts), "programming_language": languages.most_common(1)[0][0]}
    return reading.document(f"{part.name or 'files'}#{number}", "\n".join(texts), meta=meta)


def _texts(reading: Reading, part: SourcePart) -> Iterator[tuple[File, str]]:
    """The files of `part` that someone wrote, with their texts; the rest is counted."""
    for file in part.files:
        try:
            text = "" if file.size > LARGEST else _text(reading, file)
        except Binary as error:
            mend = 'remove it, give it another suffix, or set the source\'s damaged to "skip"'
            reading.damaged(
                "binary data in a source file",
                InputError(f"{file.path}: binary data in a source file ({error}); {mend}"),
            )
            continue
        except UnknownEncoding as error:
            message = f"{file.path}: {error}; convert it to UTF-8 (iconv -f ENCODING -t UTF-8) or remove it"
            reading.damaged("source file of unknown encoding", InputError(message))
            continue
        except OSError as error:
            raise unreadable(file.path, error) from error
        if reason := "beyond 1 MiB" if file.size > LARGEST else why_unread(file.name, text):
            reading.notices[f"ignored: source file {reason}"] += 1
        else:
            yield file, text


def _text(reading: Reading, file: File) -> str:
    encoding = encoding_of(file.path)
    reading.note_encoding(encoding, file.name)
    return "".join(text_of(file.path, encoding))


def why_unread(name: str, text: str) -> str | None:
    """Why a source file is not worth reading: `empty`, `minified`, `generated`, `of too few letters`, `of a licence
    only`; or None."""
    lines = text.split("\n")
    if not text.strip():
        return "empty"
    if name.lower().endswith(_MINIFIED) or len(text) > LONGEST_MEAN * len(lines) or max(map(len, lines)) > LONGEST_LINE:
        return "minified"
    if _GENERATED.search(text, 0, _HEAD):
        return "generated"
    if sum(map(str.isalnum, text)) < FEWEST_LETTERS * len(text):
        return "of too few letters"
    if all(_COMMENT.match(line) or not line.strip() for line in lines) and _LICENCE.search(text):
        return "of a licence only"
    return None
