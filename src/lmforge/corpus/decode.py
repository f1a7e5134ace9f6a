"""Bytes of a file → text: byte-order marks, declared encodings, binary data, gzip and Zstandard."""

from __future__ import annotations

import codecs
import io
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from lmforge.errors import InputError

FALLBACK = "latin-1"
_BLOCK = 1 << 20
_COMPRESSED_BLOCK = 1 << 16  # small: one block may unfold a thousandfold
_MOST_CONTROLS = 0.02  # share of control bytes above which bytes that are not UTF-8 are data, not an old 8-bit text
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


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
    """The encoding that a Python source declares in its first two lines (PEP 263), when the whole file decodes with it."""
    if path.suffix not in (".py", ".pyi", ".pyw") or b"coding" not in b"".join(head.split(b"\n", 2)[:2]):
        return None
    try:
        name, _ = tokenize.detect_encoding(io.BytesIO(head).readline)
        path.read_bytes().decode(name)
        return name
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return None


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of a plain, gzip or Zstandard file; which one it is shows in its first bytes.

    Raises:
        InputError: cannot be read; or truncated or damaged, and then how far it could be read.
    """
    number, rest, size = 0, b"", 0
    try:
        for block in _blocks(path):
            size += len(block)
            pieces = (rest + block).split(b"\n") if b"\n" in block else [rest + block]
            rest = pieces.pop()
            for piece in pieces:
                number += 1
                yield number, piece
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise InputError(
            f"{path}: {error}; readable up to line {number} ({size:,} bytes of text); fetch or compress the file again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if rest:
        yield number + 1, rest


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(b"\x1f\x8b"):
            yield from _unfold(file, "gzip")
        elif magic == zstandard.MAGIC_NUMBER.to_bytes(4, "little"):
            yield from _unfold(file, "Zstandard")
        elif path.suffix in (".gz", ".zst") and magic:
            raise EOFError(f"not a {path.suffix} file, whatever its name says")
        else:
            while block := file.read(_BLOCK):
                yield block


def _unfold(file: io.BufferedReader, kind: str) -> Iterator[bytes]:
    """Decompress one member or frame after another. (zstandard's own stream reader takes a truncated file for a whole one.)"""
    reader = _decompressor(kind)
    while block := file.read(_COMPRESSED_BLOCK):
        while block:
            if reader.eof:
                block = block.lstrip(b"\0")  # tape padding, which gzip allows after a member
                if not block:
                    break
                reader = _decompressor(kind)
            try:
                if text := reader.decompress(block):
                    yield text
            except (zlib.error, zstandard.ZstdError) as error:
                raise EOFError(f"damaged {kind} data ({error})") from error
            block = reader.unused_data if reader.eof else b""
    if not reader.eof:
        raise EOFError(f"truncated {kind} file")


def _decompressor(kind: str) -> Any:
    if kind == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def unreadable(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that the system refuses to read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: does not exist; correct the source's path in the recipe")
    if isinstance(error, PermissionError):
        return InputError(f"{path}: no permission to read it; change its permissions or leave it out of the source")
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check the disk, or leave it out of the source")
