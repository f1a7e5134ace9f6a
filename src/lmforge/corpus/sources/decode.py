"""Bytes of a file → text: byte-order marks, declared encodings, binary data, gzip and Zstandard."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import io
import tokenize
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from lmforge.errors import InputError

FALLBACK = "latin-1"
_BLOCK = 1 << 20
# how a gzip member begins; so many of its bytes are enough to unfold its first few
_GZIP, _HEAD = b"\x1f\x8b\x08", 1 << 16
# small: a block may unfold a thousandfold, 32,768-fold
_COMPRESSED_BLOCK = {"gzip": 1 << 16, "Zstandard": 1 << 12, "bzip2": 1 << 16}
COMPRESSED = (".gz", ".zst", ".bz2")
LONGEST_LINE = 64 << 20  # bytes; a longer one is no document, and memory is to stay bounded
UNFOLDED_FREELY = 256 << 20  # bytes that a compressed file may unfold to before its ratio is judged
MOST_UNFOLDED = 250  # times: text packs 3 to 20 times, repetitive logs 100; zeros 1,030 (gzip) and more
_MOST_CONTROLS = 0.02  # share of control bytes above which bytes that are not UTF-8 are data, not an old 8-bit text
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def refuse(reason: str, error: InputError) -> None:
    """What is done about damage where nothing else is said: `error` is raised."""
    raise error


class Binary(Exception):
    """The bytes are not text; the message says what gave them away."""


def encoding_of(path: Path) -> str:
    """The encoding to read `path` with: its byte-order mark's, a Python file's declared one, UTF-8, else `FALLBACK`.

    Reads the whole file in 1 MiB pieces, so memory stays bounded.

    Raises:
        Binary: a NUL byte, or not UTF-8 and more control characters than any old 8-bit text has.
        OSError: cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_BLOCK)
        for mark, name in _MARKS:
            if head.startswith(mark):
                return _checked(name, file, head)
        declared = _declared(path, head)
        valid, decoder, offset, controls = True, codecs.getincrementaldecoder("utf-8")(), 0, 0
        block = head
        while True:
            if (nul := block.find(b"\0")) >= 0:
                raise Binary(f"a NUL byte at byte {offset + nul}")
            if valid:
                try:
                    decoder.decode(block, final=not block)
                except UnicodeDecodeError:
                    valid = False
            controls += len(block) - len(block.translate(None, _CONTROLS))
            offset += len(block)
            if not block:
                break
            block = file.read(_BLOCK)
    if declared is not None:
        return declared
    if valid:
        return "utf-8"
    if controls > _MOST_CONTROLS * offset:
        raise Binary(f"not UTF-8, and {controls} of its {offset} bytes are control characters")
    return FALLBACK


def _checked(name: str, file: io.BufferedReader, head: bytes) -> str:
    """`name`, once the whole file decodes with it."""
    decoder = codecs.getincrementaldecoder(name)()
    try:
        block = head
        while block:
            decoder.decode(block)
            block = file.read(_BLOCK)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise Binary(f"starts with a {name} byte-order mark but does not decode as it ({error.reason})") from error
    return name


def _declared(path: Path, head: bytes) -> str | None:
    """The encoding that a Python source declares in its first two lines (PEP 263), when the whole file decodes with
    it."""
    if path.suffix not in (".py", ".pyi", ".pyw") or b"coding" not in b"".join(head.split(b"\n", 2)[:2]):
        return None
    try:
        name, _ = tokenize.detect_encoding(io.BytesIO(head).readline)
        path.read_bytes().decode(name)
        return name
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of a plain, gzip or Zstandard file; which one it is shows in its first
    bytes.

    Raises:
        InputError: cannot be read, or a line is longer than `LONGEST_LINE`; or truncated or damaged, and then how far
            it could be read.
    """
    for number, _, line in located_lines(path):
        yield number, line


def located_lines(
    path: Path, start: int = 0, stop: int | None = None, damaged: Callable[[str, InputError], None] = refuse
) -> Iterator[tuple[int, int, bytes]]:
    """`lines_of` with the offset in bytes of each line between number and line; of a part of the file; going on after
    damage.

    With `start` and `stop`, those lines of a plain file that begin within these bytes; numbers then count from `start`.
    `damaged` is called with a reason and an error where the file is truncated or damaged (reading ends) or a line is
    longer than `LONGEST_LINE` (it is left out); by default it raises the error. Memory stays near the longest line.

    Raises:
        InputError: cannot be read; or damaged, and then how far it could be read.
    """
    number, offset, lines = 0, max(0, start - 1), _Lines()
    try:
        for block in blocks_of(path, offset):
            for line, size in lines.split(block):
                begin, offset = offset, offset + size + 1
                if stop is not None and begin >= stop:
                    return
                if begin < start:  # the end of the line before: reading began one byte early to see where it ends
                    continue
                number += 1
                if line is None:
                    damaged(
                        "line longer than 64 MiB", _too_long(path, number if not start else line_number(path, begin))
                    )
                else:
                    yield number, begin, line
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        size = offset + lines.held
        mend = "fetch or compress the file again"
        damaged(
            "rest of a damaged file",
            InputError(f"{path}: {error}; readable up to line {number} ({size:,} bytes of text); {mend}"),
        )
        return
    except OSError as error:
        raise unreadable(path, error) from error
    line, size = lines.rest()
    if size and start <= offset and (stop is None or offset < stop):
        if line is None:
            damaged("line longer than 64 MiB", _too_long(path, number + 1 if not start else line_number(path, offset)))
        else:
            yield number + 1, offset, line


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


def blocks_of(path: Path, start: int = 0) -> Iterator[bytes]:
    """The unfolded bytes of a plain, gzip, bzip2 or Zstandard file, in blocks; of a plain one from byte `start`. Damage
    raises EOFError."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(start)
        if magic.startswith(b"\x1f\x8b") and not start:
            yield from _unfold(file, "gzip")
        elif magic == zstandard.MAGIC_NUMBER.to_bytes(4, "little") and not start:
            yield from _unfold(file, "Zstandard")
        elif magic.startswith(b"BZh") and not start:
            yield from _unfold(file, "bzip2")
        elif path.suffix in COMPRESSED and magic:
            raise EOFError(f"not a {path.suffix} file, whatever its name says")
        else:
            while block := file.read(_BLOCK):
                yield block


def members_of(path: Path, start: int, stop: int, head: bytes) -> Iterator[bytes]:
    """The unfolded bytes of a gzip file's members that begin at byte `start` to `stop` - 1, each of which unfolds to
    `head` and more, in blocks; ranges that follow each other give each member once. Nothing where none begins there.
    Damage raises EOFError."""
    with path.open("rb") as file:
        first = _member(file, start, stop, head)
        if first is not None:
            last = _member(file, stop, path.stat().st_size, head)
            file.seek(first)
            yield from _unfold(file if last is None else _Range(file, last), "gzip")


def _member(file: io.BufferedReader, start: int, stop: int, head: bytes) -> int | None:
    """Where the first member begins from `start` on and before `stop`."""
    file.seek(start)
    held = b""
    while start < stop and (block := file.read(_BLOCK)):
        held += block
        at = held.find(_GZIP)
        while at >= 0 and start + at < stop:
            if len(held) - at < _HEAD and (more := file.read(_HEAD)):
                held += more
            with contextlib.suppress(zlib.error):
                if zlib.decompressobj(wbits=31).decompress(held[at : at + _HEAD], len(head)) == head:
                    return start + at
            at = held.find(_GZIP, at + 1)
        start, held = start + max(0, len(held) - len(_GZIP) + 1), held[-len(_GZIP) + 1 :]
    return None


class _Range:
    """A file that ends at byte `stop`."""

    def __init__(self, file: io.BufferedReader, stop: int) -> None:
        self._file, self._stop = file, stop

    def read(self, size: int) -> bytes:
        return self._file.read(max(0, min(size, self._stop - self._file.tell())))


def _unfold(file: io.BufferedReader | _Range, kind: str) -> Iterator[bytes]:
    """Decompress one member or frame after another. (zstandard's own stream reader takes a truncated file for a whole
    one.)"""
    reader, packed, unfolded = _decompressor(kind), 0, 0
    while block := file.read(_COMPRESSED_BLOCK[kind]):
        packed += len(block)
        while block:
            if reader.eof:
                block = block.lstrip(b"\0")  # tape padding, which gzip allows after a member
                if not block:
                    break
                reader = _decompressor(kind)
            for text in _decompressed(reader, block, kind):
                unfolded += len(text)
                if unfolded > UNFOLDED_FREELY and unfolded > MOST_UNFOLDED * packed:
                    raise EOFError(f"a {kind} bomb: {packed:,} bytes unfold to more than {unfolded:,}")
                yield text
            block = reader.unused_data if reader.eof else b""
    if not reader.eof:
        raise EOFError(f"truncated {kind} file")


def _decompressed(reader: Any, block: bytes, kind: str) -> Iterator[bytes]:
    """What `block` adds, in pieces that fit memory."""
    try:
        if kind == "Zstandard":
            if text := reader.decompress(block):
                yield text
        elif kind == "gzip":
            while text := reader.decompress(block, _BLOCK):
                yield text
                block = reader.unconsumed_tail
                if len(text) < _BLOCK and not block:
                    return
        else:
            text = reader.decompress(block, _BLOCK)
            while text or not (reader.needs_input or reader.eof):
                yield text
                text = b"" if reader.eof else reader.decompress(b"", _BLOCK)
    except (zlib.error, zstandard.ZstdError, OSError) as error:
        raise EOFError(f"damaged {kind} data ({error})") from error


def _decompressor(kind: str) -> Any:
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that the system refuses to read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: does not exist; correct the source's path in the recipe")
    if isinstance(error, PermissionError):
        return InputError(f"{path}: no permission to read it; change its permissions or leave it out of the source")
    return InputError(
        f"{path}: cannot be read ({error.strerror or error}); check the disk, or leave it out of the source"
    )
