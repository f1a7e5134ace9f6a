"""Files → lines and texts: compressed or plain, in whatever encoding; damage named, and read past where the format
allows."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

from lmforge.corpus.sources.encodings import Encoding, declared_in_python, decoded
from lmforge.corpus.sources.encodings import encoding_of as encoding_of_blocks
from lmforge.corpus.sources.unfold import Break, blocks_and_breaks
from lmforge.corpus.sources.wide import as_utf8
from lmforge.errors import InputError

_BLOCK = 1 << 20
LONGEST_LINE = 64 << 20  # bytes; a longer one is no document, and memory is to stay bounded
DAMAGED_PART = "damaged part of a file"
Damaged = Callable[[str, InputError], None]


def refuse(reason: str, error: InputError) -> None:
    """What is done about damage where nothing else is said: `error` is raised."""
    raise error


# Texts


def encoding_of(path: Path) -> Encoding:
    """The encoding of a text file, plain or compressed (see `lmforge.corpus.sources.encodings`). Streams it.

    Raises:
        NotText: it is binary data, or in no encoding that can be told.
        OSError: cannot be read.
    """
    declared = None
    if path.suffix.lower() in (".py", ".pyi", ".pyw"):
        with path.open("rb") as file:
            declared = declared_in_python(file.read(1 << 12))
    return encoding_of_blocks(lambda: _whole_blocks(path), declared)


def text_of(path: Path, encoding: Encoding, damaged: Damaged = refuse) -> Iterator[str]:
    """The text of a file in pieces, line ends as \\n; of a compressed one what can be read, and `damaged` is called for
    what cannot."""
    return decoded(_reported(path, damaged), encoding)


def _whole_blocks(path: Path) -> Iterator[bytes]:
    return (block for block in blocks_and_breaks(path) if isinstance(block, bytes))


def _reported(path: Path, damaged: Damaged) -> Iterator[bytes]:
    size = 0
    for block in blocks_and_breaks(path):
        if isinstance(block, bytes):
            size += len(block)
            yield block
        elif block.cause:
            damaged(DAMAGED_PART, _damage(path, block.cause, f"{size:,} bytes of text"))


def _damage(path: Path, cause: str, reached: str) -> InputError:
    return InputError(f"{path}: {cause}; readable up to {reached}; fetch or compress the file again")


# Lines


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end, in UTF-8) of a plain or compressed file; which one it is shows in its
    first bytes.

    Raises:
        InputError: cannot be read, or a line is longer than `LONGEST_LINE`; or truncated or damaged, and then how far
            it could be read.
    """
    for number, _, line in located_lines(path):
        yield number, line


def located_lines(
    path: Path,
    start: int = 0,
    stop: int | None = None,
    damaged: Damaged = refuse,
    is_whole: Callable[[bytes], bool] | None = None,
    noted: Callable[[str], None] = lambda encoding: None,
) -> Iterator[tuple[int, int, bytes]]:
    """`lines_of` with the offset in bytes of each line between number and line; of a part of the file; going on after
    damage.

    Lines of a file in UTF-16 or UTF-32 come in UTF-8, offsets too, and `noted` is called with its encoding. (Such a
    file is not read in parts.) A byte-order mark is left out, also where files were joined.

    With `start` and `stop`, those lines of a plain file that begin within these bytes; numbers then count from `start`.
    `damaged` is called with a reason and an error where the file is truncated or damaged or a line is longer than
    `LONGEST_LINE` (it is left out); by default it raises the error. Of a line that stands beside damage it cannot be
    seen whether it is whole: `is_whole` says so, and without it such lines are left out. Memory stays near the longest
    line.

    Raises:
        InputError: cannot be read; or damaged, and then how far it could be read.
    """
    number, offset, lines, torn = 0, max(0, start - 1), _Lines(), False
    try:
        pieces = blocks_and_breaks(path, offset)
        for block in _with_end(pieces if start else as_utf8(pieces, noted)):
            if isinstance(block, Break) and block.cause is None and not block.last:
                continue  # a line may go on in the next member
            beside = isinstance(block, Break) and block.cause is not None
            for line, size in lines.split(block) if isinstance(block, bytes) else lines.remaining():
                begin, offset = offset, offset + size + 1
                if stop is not None and begin >= stop:
                    return
                if begin < start:  # the end of the line before: reading began one byte early to see where it ends
                    continue
                number += 1
                doubtful, torn = torn or beside, False
                if line is None:
                    damaged(
                        "line longer than 64 MiB", _too_long(path, number if not start else line_number(path, begin))
                    )
                elif not doubtful or (is_whole is not None and is_whole(line)):
                    yield number, begin, line.removeprefix(codecs.BOM_UTF8)
            if isinstance(block, Break) and block.cause:
                damaged(DAMAGED_PART, _damage(path, block.cause, f"line {number} ({offset:,} bytes of text)"))
                torn = True
    except OSError as error:
        raise unreadable(path, error) from error


def _with_end(blocks: Iterator[bytes | Break]) -> Iterator[bytes | Break]:
    yield from blocks
    yield Break(last=True)


class _Lines:
    """Blocks → lines without their ends, each with its size; a line beyond `LONGEST_LINE` comes as None and is not
    held."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.held = 0  # bytes since the last line end

    def split(self, block: bytes) -> Iterator[tuple[bytes | None, int]]:
        *ended, rest = block.split(b"\n")
        for piece in ended:
            if self.held:
                self._hold(piece)
                yield self.rest()
            else:
                yield piece if len(piece) <= LONGEST_LINE else None, len(piece)
        if rest:
            self._hold(rest)

    def rest(self) -> tuple[bytes | None, int]:
        line, size = b"".join(self._pieces) if self.held <= LONGEST_LINE else None, self.held
        self._pieces, self.held = [], 0
        return line, size

    def remaining(self) -> Iterator[tuple[bytes | None, int]]:
        if self.held:
            yield self.rest()

    def _hold(self, piece: bytes) -> None:
        self.held += len(piece)
        if self.held <= LONGEST_LINE:
            self._pieces.append(piece)
        else:
            self._pieces.clear()


def _too_long(path: Path, number: int) -> InputError:
    return InputError(
        f"{path}:{number}: a line longer than {LONGEST_LINE >> 20} MiB, which is no document; put each record on a "
        "line of its own"
    )


def line_number(path: Path, offset: int) -> int:
    """The number of the line that begins at byte `offset` of a plain file. Reads all before it: for messages."""
    number = 1
    with path.open("rb") as file:
        while offset > 0 and (block := file.read(min(_BLOCK, offset))):
            number += block.count(b"\n")
            offset -= len(block)
    return number


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that the system refuses to read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: does not exist; correct the source's path in the recipe")
    if isinstance(error, PermissionError):
        return InputError(f"{path}: no permission to read it; change its permissions or leave it out of the source")
    return InputError(
        f"{path}: cannot be read ({error.strerror or error}); check the disk, or leave it out of the source"
    )
