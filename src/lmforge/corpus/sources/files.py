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


class SourcePart(NamedTuple):
    """A piece of a source that is read on its own. It depends on the source's files alone, never on who reads it."""

    name: str  # distinct within the source
    files: tuple[File, ...]
    start: int = 0  # where in its only file a range begins: byte, row group or shard, as the kind counts
    stop: int | None = None  # and ends; None: the files whole
    bytes: int = 0  # of the files that it reads


def files_of(
    source: Source, suffixes: Sequence[str], notices: Counter[str], skipped: frozenset[str] = NOT_TEXTS
) -> list[File]:
    """The files of `source` that end in one of `suffixes`, in capitals or not, by name, each file once however many
    names lead to it; what is passed over is counted.

    Raises:
        InputError: the path does not exist, may not be read, or holds no such file.
    """
    assert source.path is not None  # the recipe's check
    passed: Counter[str] = Counter()
    matches = _matches(source.path)
    base = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in matches]))
    # a pattern such as ** names no suffix, so the kind of source decides; one such as *.log or a file's name does
    any_suffix = len(matches) == 1 or "." in source.path.name
    walking = _Walk(base, tuple(suffixes), passed, skipped)
    for path in matches:
        if len(matches) > 1 and not skipped.isdisjoint(path.relative_to(base).parts):
            continue
        if path.is_dir():
            walking.folder(path)
        elif any_suffix or walking.wanted(path, path.name):
            walking.file(path)
    notices.update(passed)
    if not walking.files:
        why = ", ".join(f"{count} {what}" for what, count in passed.most_common(3))
        wanted = " ".join(suffixes) if len(suffixes) < 9 else ".txt .md .rst .py … (text and source code)"
        raise InputError(
            f"{source.path}: no {source.kind} files in it ({why or 'it is empty'}); expected files ending in {wanted}"
        )
    return walking.distinct()


def listing_hash(files: Iterable[File], more: str = "") -> str:
    """SHA-256 over `more` and the (relative path, size, mtime) of the files: changes when they do. Reads no
    contents."""
    digest = hashlib.sha256(more.encode())
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0{file.mtime_ns}\n".encode())
    return digest.hexdigest()


def gathered(files: Sequence[File]) -> list[SourcePart]:
    """Neighbouring files together, up to about `PART_BYTES`, a larger file alone."""
    wanted = max(PART_BYTES, sum(file.size for file in files) // MOST_PARTS)
    parts: list[SourcePart] = []
    held: list[File] = []
    size = 0
    for file in files:
        if held and size + file.size > wanted:
            parts.append(_whole(held, size))
            held, size = [], 0
        held.append(file)
        size += file.size
    return [*parts, _whole(held, size)] if held else parts


def cut(files: Sequence[File], ranges: Iterable[tuple[File, Sequence[tuple[int, int, int]]]]) -> list[SourcePart]:
    """`gathered`, but the files named in `ranges` become one part for each of their (start, stop, bytes)."""
    pieces = dict(ranges)
    parts: list[SourcePart] = []
    held: list[File] = []
    for file in files:
        if file not in pieces:
            held.append(file)
            continue
        parts += gathered(held) + [
            SourcePart(f"{file.name}[{a}:{b}]", (file,), a, b, size) for a, b, size in pieces[file]
        ]
        held = []
    return parts + gathered(held)


def byte_ranges(file: File) -> list[tuple[int, int, int]]:
    """(start, stop, bytes) of the ranges that a file beyond `SPLIT_ABOVE` is read in."""
    return [
        (start, stop := min(start + SPLIT_ABOVE, file.size), stop - start) for start in range(0, file.size, SPLIT_ABOVE)
    ]


def _whole(files: Sequence[File], size: int) -> SourcePart:
    return SourcePart(files[0].name, tuple(files), bytes=size)


def _matches(path: Path) -> list[Path]:
    """The path itself, or what it stands for as a pattern."""
    try:
        if path.exists():
            return [path]
    except OSError as error:
        raise unreadable(path, error) from error
    if glob.has_magic(str(path)):
        if paths := sorted(set(_deep(path))):
            return paths
        raise InputError(f"{path}: no file matches this pattern; correct the source's path in the recipe")
    raise InputError(f"{path}: does not exist; correct the source's path in the recipe")


def _deep(pattern: Path) -> Iterator[Path]:
    """What a pattern stands for. `**` enters every folder once: Python's own goes through a circle of links again and
    again, each time by all of its ways."""
    if "**" not in pattern.parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    at = pattern.parts.index("**")
    rest = pattern.parts[at + 1 :]
    for top in map(Path, glob.glob(str(Path(*pattern.parts[:at])))):
        if not rest:
            yield top
        else:
            for folder in _folders(top, set()):
                yield from _deep(folder.joinpath(*rest))


def _folders(root: Path, entered: set[str]) -> Iterator[Path]:
    """`root` and the folders below it that are not hidden, links followed, each once."""
    if not root.is_dir() or (real := os.path.realpath(root)) in entered:
        return
    entered.add(real)
    yield root
    for path in sorted(root.iterdir()):
        if not path.name.startswith("."):
            yield from _folders(path, entered)


def walk(root: Path, base: Path, suffixes: Sequence[str], notices: Counter[str], skipped: frozenset[str]) -> list[File]:
    """Files below `root` with one of `suffixes` (in capitals or not), named from `base`, each once; links are followed,
    a folder is entered once however many lead to it. Hidden ones and folders named in `skipped` are left out."""
    walking = _Walk(base, tuple(suffixes), notices, skipped)
    walking.folder(root)
    return walking.distinct()


class _Walk:
    """Folders being walked: every folder once, so that links may form circles; every file once."""

    def __init__(self, base: Path, suffixes: tuple[str, ...], notices: Counter[str], skipped: frozenset[str]) -> None:
        self.base, self.suffixes, self.notices, self.skipped = base, suffixes, notices, skipped
        self.files: list[tuple[bool, File, tuple[int, int] | str]] = []  # through a link, the file, what it is
        self.entered: set[tuple[int, int] | str] = set()

    def folder(self, root: Path) -> None:
        """Its files, and those of the folders in it: first the folders that are there, then those that links lead to,
        so that a file goes by the name of its own folder."""
        links = [(root, root.is_symlink())]
        for folder, linked in links:  # which grows
            links += [(path, True) for path in sorted(self._own(folder, linked))]

    def _own(self, root: Path, linked: bool) -> list[Path]:
        def refuse(error: OSError) -> None:
            raise unreadable(Path(error.filename or root), error) from error

        links: list[Path] = []
        for here, folders, names in os.walk(root, onerror=refuse):
            identity = self._identity(Path(here))
            if identity in self.entered:
                folders.clear()
                continue
            self.entered.add(identity)
            folders[:] = [name for name in folders if name not in self.skipped and not name.startswith(".")]
            links += [path for name in folders if (path := Path(here, name)).is_symlink()]
            for name in names:
                path = Path(here, name)
                if self.wanted(path, name):
                    self.file(path, linked)
        return links

    def wanted(self, path: Path, name: str) -> bool:
        """Whether a file is of this kind of source; if not, it is counted."""
        if name.startswith(".") or not name.lower().endswith(self.suffixes):
            self.notices[f"ignored: {'hidden' if name.startswith('.') else path.suffix.lower() or 'no suffix'}"] += 1
            return False
        if path.is_symlink() and not path.exists():
            self.notices["ignored: broken link"] += 1
            return False
        return True

    def file(self, path: Path, linked: bool = False) -> None:
        """Take this file."""
        self.files.append((linked or path.is_symlink(), _stat(path, self.base), self._identity(path)))

    def distinct(self) -> list[File]:
        """The files by name, each once: by its own name where it has one here, else by the first."""
        named: dict[tuple[int, int] | str, File] = {}
        for linked, file, identity in sorted(self.files, key=lambda each: each[:2]):
            if identity not in named:
                named[identity] = file
            elif linked and named[identity] != file:
                self.notices["ignored: link to a file that is read already"] += 1
        return sorted(named.values())

    @staticmethod
    def _identity(path: Path) -> tuple[int, int] | str:
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _stat(path: Path, base: Path) -> File:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file; remove it or leave it out of the source")
    name = os.fsencode(path.relative_to(base).as_posix()).decode("utf-8", "replace")
    return File(name, path, status.st_size, status.st_mtime_ns)
