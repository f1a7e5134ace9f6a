"""Compressed files → bytes, member by member: gzip, Zstandard, bzip2, xz. The end of one member is not the end of the
file, and damage in one is not damage of the next.

    file ──members──▶ bytes | Break, bytes | Break, …     a Break: a member ended, or why it could not be read

A member that unfolds to at most `HELD` bytes is given out when its checksum was right, so nothing of a damaged one is
taken for text; of a larger one what stands before the damage is given out. After damage reading goes on with the next
member that can be unfolded (a gzip member and a Zstandard frame begin with a mark; so do a bzip2 and an xz stream).
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
UNFOLDED_FREELY = 256 << 20  # bytes that a compressed file may unfold to before its ratio is judged
MOST_UNFOLDED = 250  # times: text packs 3 to 20 times, repetitive logs 100; zeros 1,030 (gzip) and more
HELD = 8 << 20  # bytes of a member that wait for its checksum
_BLOCK = 1 << 20
_HEAD = 1 << 16  # so many bytes of a member are enough to see that it is one
_MARKS = {
    "gzip": b"\x1f\x8b\x08",
    "Zstandard": zstandard.MAGIC_NUMBER.to_bytes(4, "little"),
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
}
# small: a block may unfold a thousandfold, 32,768-fold
_COMPRESSED_BLOCK = {"gzip": 1 << 16, "Zstandard": 1 << 12, "bzip2": 1 << 16, "xz": 1 << 16}
# Zstandard frames that hold no text (RFC 8878, section 3.1.2); the one that begins a .warc.zst file is its dictionary
_SKIPPABLE, _DICTIONARY = range(0x184D2A50, 0x184D2A60), 0x184D2A5D
_LARGEST_DICTIONARY = 64 << 20
_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)


class Break(NamedTuple):
    """A place in the unfolded bytes: a member ends well (`cause` None), or something here could not be read; or the
    file ends (`last`)."""

    cause: str | None = None
    last: bool = False


class _Bomb(Exception):
    """The file unfolds beyond all reason."""


def blocks_and_breaks(path: Path, start: int = 0) -> Iterator[bytes | Break]:
    """The unfolded bytes of a plain or compressed file, in blocks, with a `Break` between members and where it is
    damaged. Of a plain file from byte `start`.

    Raises:
        OSError: cannot be opened or read.
    """
    with path.open("rb") as file:
        magic = file.read(8)
        file.seek(start)
        kind = next((kind for kind, mark in _MARKS.items() if magic.startswith(mark)), None)
        if int.from_bytes(magic[:4], "little") in _SKIPPABLE:
            kind = "Zstandard"
        if kind == "bzip2" and magic[3:4] not in b"123456789":
            kind = None
        if kind is not None and not start:
            yield from _members(file, kind, path.stat().st_size)
        elif path.suffix.lower() in COMPRESSED and magic:
            yield Break(f"not a {path.suffix.lower()} file, whatever its name says")
        else:
            while block := file.read(_BLOCK):
                yield block


def blocks_of(path: Path, start: int = 0) -> Iterator[bytes]:
    """`blocks_and_breaks` where damage is an error: EOFError, which says what is wrong."""
    for block in blocks_and_breaks(path, start):
        if isinstance(block, bytes):
            yield block
        elif block.cause:
            raise EOFError(block.cause)


def members_of(path: Path, start: int, stop: int, head: bytes) -> Iterator[bytes | Break]:
    """The unfolded bytes of a gzip file's members that begin at byte `start` to `stop` - 1, each of which unfolds to
    `head` and more; ranges that follow each other give each member once. Nothing where none begins there."""
    with path.open("rb") as file:
        size = path.stat().st_size
        first = _next_member(file, "gzip", start, stop, head)
        if first is not None:
            last = _next_member(file, "gzip", stop, size, head)
            file.seek(first)
            yield from _members(file, "gzip", size if last is None else last)


def _next_member(file: io.BufferedReader, kind: str, start: int, stop: int, head: bytes = b"") -> int | None:
    """Where the first member that can be unfolded, to `head` and more, begins from `start` on and before `stop`."""
    mark, held = _MARKS[kind], b""
    file.seek(start)
    while start < stop and (block := file.read(_BLOCK)):
        held += block
        at = held.find(mark)
        while at >= 0 and start + at < stop:
            if len(held) - at < _HEAD and (more := file.read(_HEAD)):
                held += more
            if _begins(held[at : at + _HEAD], kind, head):
                return start + at
            at = held.find(mark, at + 1)
        start, held = start + max(0, len(held) - len(mark) + 1), held[-len(mark) + 1 :]
    return None


def _begins(data: bytes, kind: str, head: bytes) -> bool:
    """Whether a member begins with these bytes."""
    reader, text = _decompressor(kind), b""
    try:
        for piece in _decompressed(reader, data, kind):
            text = (text + piece)[: len(head)]
            if head and len(text) == len(head):
                break
    except _ERRORS:
        return False
    return text == head


def _members(file: io.BufferedReader, kind: str, stop: int) -> Iterator[bytes | Break]:
    """Unfold one member or frame after another, up to byte `stop`. (zstandard's own stream reader takes a truncated
    file for a whole one; gzip's ends at the first damage.)"""
    begin, unfolded = file.tell(), [0]
    try:
        dictionary = _dictionary(file) if kind == "Zstandard" and not begin else None
    except _ERRORS as error:
        yield Break(f"damaged dictionary ({error})")
        return
    while begin < stop:
        member = _Member(file, kind, begin, stop, dictionary)
        try:
            yield from member.read(unfolded)
        except _Bomb as bomb:
            yield Break(str(bomb))
            return
        if member.end is None:
            next_begin = _next_member(file, kind, begin + 1, stop)
            if next_begin is None:
                return
            member.end = next_begin
        begin = member.end


def _dictionary(file: io.BufferedReader) -> zstandard.ZstdCompressionDict | None:
    """The dictionary that a .warc.zst file begins with, in a frame of its own, plain or compressed itself
    (https://iipc.github.io/warc-specifications/specifications/warc-zstd/)."""
    file.seek(0)
    mark, size = (int.from_bytes(file.read(4), "little") for _ in range(2))
    if mark != _DICTIONARY or size > _LARGEST_DICTIONARY:
        return None
    data = file.read(size)
    if data.startswith(_MARKS["Zstandard"]):
        data = zstandard.ZstdDecompressor().decompress(data, max_output_size=_LARGEST_DICTIONARY)
    return zstandard.ZstdCompressionDict(data)


class _Member:
    """One member of a compressed file; `end` is where the next one begins, None after damage."""

    def __init__(
        self,
        file: io.BufferedReader,
        kind: str,
        begin: int,
        stop: int,
        dictionary: zstandard.ZstdCompressionDict | None = None,
    ) -> None:
        self.file, self.kind, self.begin, self.stop, self.dictionary = file, kind, begin, stop, dictionary
        self.end: int | None = None

    def read(self, unfolded: list[int]) -> Iterator[bytes | Break]:
        """Its bytes, then a `Break`; `unfolded` counts all bytes of the file."""
        self.file.seek(self.begin)
        block = self._block()
        while block and not (stripped := block.lstrip(b"\0")):  # tape padding, which gzip allows between members
            self.begin, block = self.begin + len(block), self._block()
        if not block:
            self.end = self.stop
            return
        self.begin += len(block) - len(stripped)
        reader, held, size, block = _decompressor(self.kind, self.dictionary), list[bytes](), 0, stripped
        try:
            while block:
                for text in _decompressed(reader, block, self.kind):
                    self._weigh(unfolded, len(text))
                    size += len(text)
                    held.append(text)
                    if size > HELD:
                        yield from held
                        held.clear()
                if reader.eof:
                    yield from held
                    self.end = self.file.tell() - len(reader.unused_data)
                    yield Break()
                    return
                block = self._block()
        except _ERRORS as error:
            yield Break(f"damaged {self.kind} data ({error})")
            return
        yield from held  # what stands before the place where the file was cut
        yield Break(f"truncated {self.kind} file")

    def _block(self) -> bytes:
        return self.file.read(max(0, min(_COMPRESSED_BLOCK[self.kind], self.stop - self.file.tell())))

    def _weigh(self, unfolded: list[int], more: int) -> None:
        unfolded[0] += more
        packed = self.file.tell()
        if unfolded[0] > UNFOLDED_FREELY and unfolded[0] > MOST_UNFOLDED * packed:
            raise _Bomb(f"a {self.kind} bomb: {packed:,} bytes unfold to more than {unfolded[0]:,}")


def _decompressed(reader: Any, block: bytes, kind: str) -> Iterator[bytes]:
    """What `block` adds to one member, in pieces that fit memory; what stands after the member is left in
    `reader.unused_data`."""
    if kind == "Zstandard":
        if text := reader.decompress(block):
            yield text
    elif kind == "gzip":
        while not reader.eof:
            text = reader.decompress(block, _BLOCK)
            block = reader.unconsumed_tail
            if text:
                yield text
            if not block and len(text) < _BLOCK:
                return
    else:
        text = reader.decompress(block, _BLOCK)
        while text or not (reader.needs_input or reader.eof):
            yield text
            text = b"" if reader.eof else reader.decompress(b"", _BLOCK)


def _decompressor(kind: str, dictionary: zstandard.ZstdCompressionDict | None = None) -> Any:
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    if kind == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ)
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(dictionary, max_window_size=1 << 31).decompressobj()
