"""Which files a source names, and how they are cut into parts to be read one by one, in any order, on any machine."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lmforge.corpus.sources.decode import unreadable
from lmforge.errors import InputError
from lmforge.recipe import Source

# files are gathered into parts of this size, so that a folder of small ones is not a part for each
PART_BYTES = 4 << 20
MOST_PARTS = 1 << 16  # a source beyond PART_BYTES × MOST_PARTS has larger parts instead of more
SPLIT_ABOVE = 64 << 20  # bytes: a file beyond this is read in ranges of this size where its format allows
NOT_TEXTS = frozenset(("__pycache__", "node_modules"))


class File(NamedTuple):
    """A file of a source."""

    name: str  # relative to the source's root, "/" between parts
    path: Path
    size: int
    mtime_ns: int


class Part(NamedTuple):
    """A piece of a source that is read on its own. It depends on the source's files alone, never on who reads it."""

    name: str  # distinct within the source
    files: tuple[File, ...]
    start: int = 0  # where in its only file a range begins: byte, row group or shard, as the kind counts
    stop: int | None = None  # and ends; None: the files whole
    bytes: int = 0  # of the files that it reads


def files_of(
    source: Source, suffixes: Sequence[str], notices: Counter[str], skipped: frozenset[str] = NOT_TEXTS
) -> list[File]:
    """The files of `source` that end in one of `suffixes`, by name; what is passed over is counted.

    Raises:
        InputError: the path does not exist, may not be read, or holds no such file.
    """
    assert source.path is not None  # the recipe's check
    found: list[File] = []
    passed: Counter[str] = Counter()
    matches = _matches(source.path)
    base = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in matches]))
    for path in matches:
        found += walk(path, base, suffixes, passed, skipped) if path.is_dir() else [_stat(path, base)]
    notices.update(passed)
    if not found:
        why = ", ".join(f"{count} {what}" for what, count in passed.most_common(3))
        wanted = " ".join(suffixes) if len(suffixes) < 9 else ".txt .md .rst .py … (text and source code)"
        raise InputError(
            f"{source.path}: no {source.kind} files in it ({why or 'it is empty'}); expected files ending in {wanted}"
        )
    return sorted(found)


def listing_hash(files: Iterable[File], more: str = "") -> str:
    """SHA-256 over `more` and the (relative path, size, mtime) of the files: changes when they do. Reads no
    contents."""
    digest = hashlib.sha256(more.encode())
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode())
    return digest.hexdigest()


def gathered(files: Sequence[File]) -> list[Part]:
    """Neighbouring files together, up to about `PART_BYTES`, a larger file alone."""
    wanted = max(PART_BYTES, sum(file.size for file in files) // MOST_PARTS)
    parts: list[Part] = []
    held: list[File] = []
    size = 0
    for file in files:
        if held and size + file.size > wanted:
            parts.append(_whole(held, size))
            held, size = [], 0
        held.append(file)
        size += file.size
    return [*parts, _whole(held, size)] if held else parts


def cut(files: Sequence[File], ranges: Iterable[tuple[File, Sequence[tuple[int, int, int]]]]) -> list[Part]:
    """`gathered`, but the files named in `ranges` become one part for each of their (start, stop, bytes)."""
    pieces = dict(ranges)
    parts: list[Part] = []
    held: list[File] = []
    for file in files:
        if file not in pieces:
            held.append(file)
            continue
        parts += gathered(held) + [Part(f"{file.name}[{a}:{b}]", (file,), a, b, size) for a, b, size in pieces[file]]
        held = []
    return parts + gathered(held)


def byte_ranges(file: File) -> list[tuple[int, int, int]]:
    """(start, stop, bytes) of the ranges that a file beyond `SPLIT_ABOVE` is read in."""
    return [
        (start, stop := min(start + SPLIT_ABOVE, file.size), stop - start) for start in range(0, file.size, SPLIT_ABOVE)
    ]


def _whole(files: Sequence[File], size: int) -> Part:
    return Part(files[0].name, tuple(files), bytes=size)


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


def walk(root: Path, base: Path, suffixes: Sequence[str], notices: Counter[str], skipped: frozenset[str]) -> list[File]:
    """Files below `root` with one of `suffixes`, named from `base`; hidden ones and folders named in `skipped` are left
    out."""
    return list(_walked(root, base, tuple(suffixes), notices, skipped))


def _walked(
    root: Path, base: Path, suffixes: tuple[str, ...], notices: Counter[str], skipped: frozenset[str]
) -> Iterator[File]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or root), error) from error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or not name.endswith(suffixes):
                notices[f"ignored: {'hidden' if name.startswith('.') else path.suffix or 'no suffix'}"] += 1
            elif path.is_symlink() and not path.exists():
                notices["ignored: broken link"] += 1
            else:
                yield _stat(path, base)


def _stat(path: Path, base: Path) -> File:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file; remove it or leave it out of the source")
    name = os.fsencode(path.relative_to(base).as_posix()).decode("utf-8", "replace")
    return File(name, path, status.st_size, status.st_mtime_ns)
