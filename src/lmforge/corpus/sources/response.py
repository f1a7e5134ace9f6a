"""HTTP responses as archives store them → the body, without chunks and compression.

    block ─▶ head, body as it was sent ─▶ chunks joined ─▶ unfolded

RFC 9112, section 7.1 (chunks); RFC 9110, section 8.4 (content codings). Headers that claim chunks or a compression
which the body does not have are passed over: crawlers store bodies already decoded. What a body is compressed with is
told by its first bytes, where they tell; servers name one coding and send another.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import brotli
import zstandard

LONGEST_HEAD = 64 << 10
HEAD_END = re.compile(rb"\r?\n\r?\n")
MOST_INTERIM = 8  # responses of a server or a proxy that come before the one asked for
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_PLAIN = (b"", b"identity", b"none", b"utf-8", b"utf8", b"binary", b"7bit", b"8bit")


class Response(NamedTuple):
    """An HTTP response: status, fields by lower-case name, body as it was sent."""

    status: int
    fields: dict[str, str]
    body: bytes


class Undecodable(Exception):
    """A body that cannot be decoded; the message says why."""


class TooLong(Exception):
    """A body that unfolds beyond the bound."""


def head_fields(lines: list[bytes]) -> dict[str, str]:
    """Header fields by lower-case name; a line that begins with a blank goes on the one before; of equal names the
    first stands."""
    fields: dict[str, str] = {}
    last = ""
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip()
        if text[:1] in (" ", "\t") and last:
            fields[last] += " " + text.strip()
            continue
        name, colon, value = text.partition(":")
        if colon and name.strip():
            last = name.strip().lower()
            if last in fields:
                last = ""
            else:
                fields[last] = value.strip()
    return fields


def response_of(block: bytes) -> Response | None:
    """The HTTP response in a record's block, the last where a server's or a proxy's own stand before it (100 Continue,
    103 Early Hints, 200 Connection established); None where it is none."""
    response = _response(block)
    for _ in range(MOST_INTERIM):
        if response is None or not response.body.startswith(b"HTTP/"):
            break
        interim = response.status < 200 or (response.status == 200 and "content-type" not in response.fields)
        after = _response(response.body) if interim else None
        if after is None:
            break
        response = after
    return response


def _response(block: bytes) -> Response | None:
    match = HEAD_END.search(block, 0, LONGEST_HEAD)
    head, body = (block[: match.start()], block[match.end() :]) if match else (block, b"")
    first, *lines = head.split(b"\n")
    status = first.split(None, 2)
    if len(status) < 2 or not status[0].startswith((b"HTTP/", b"ICY")) or not status[1][:3].isdigit():
        return None
    return Response(int(status[1][:3]), head_fields(lines), body)


def media_type(content_type: str) -> tuple[str, str | None]:
    """(media type in lower case, character set) of a Content-Type."""
    kind, _, parameters = content_type.partition(";")
    match = re.search(r"""charset\s*=\s*["']?([^\s;"']+)""", parameters, re.IGNORECASE)
    return kind.strip().lower(), match[1] if match else None


def body_of(response: Response, most: int) -> bytes:
    """The body without chunks and content codings, of at most `most` bytes.

    Raises:
        Undecodable: it is truncated or damaged.
        TooLong: there is more.
    """
    body = response.body
    transfer = response.fields.get("transfer-encoding", "").lower()
    if "chunked" in transfer or _is_chunked(body):
        body = _joined(body)
    codings = f"{response.fields.get('content-encoding', '')},{transfer.replace('chunked', '')}"
    for coding in reversed([coding.strip().lower().encode() for coding in codings.split(",")]):
        body = _decoded(body, coding, most)
    if _marked(body) is not None:  # compressed, though nothing says so, or twice
        body = _decoded(body, b"gzip", most)
    if len(body) > most:
        raise TooLong
    return body


def _is_chunked(body: bytes) -> bool:
    """Whether a body is chunks from its first byte to the empty one that ends them, though no header says so."""
    if not _CHUNK.match(body):
        return False
    try:
        return _joined(body) != body
    except Undecodable:
        return False


def _joined(body: bytes) -> bytes:
    """Chunks joined; a body that is not in chunks as it is."""
    pieces, place = list[bytes](), 0
    while place < len(body):
        match = _CHUNK.match(body, place)
        end = match.end() + int(match[1], 16) if match else 0
        if (
            not match
            or (end > len(body) and place)
            or (not place and body[end : end + 2] not in (b"\r\n", b"", b"\n\n"))
        ):
            if not place and not (match and end > len(body) and int(match[1], 16) > 0xFF):
                return body  # joined already
            raise Undecodable("damaged or truncated chunks")
        if end == match.end():
            return b"".join(pieces)  # what follows is trailers
        if end > len(body):
            raise Undecodable("damaged or truncated chunks")
        pieces.append(body[match.end() : end])
        place = end + (2 if body[end : end + 2] == b"\r\n" else 1 if body[end : end + 1] == b"\n" else 0)
    if pieces:
        raise Undecodable("chunks without an end")
    return body


def _decoded(body: bytes, coding: bytes, most: int) -> bytes:
    """The body before this coding, or before the one that its first bytes tell; as it is where it has none."""
    if coding in _PLAIN or not body:
        return body
    for decode in dict.fromkeys((_marked(body), *_CODINGS.get(coding, ()), _zlib, _brotli)):
        try:
            if decode is not None:
                return decode(body, most)
        except (zlib.error, brotli.error, zstandard.ZstdError, Undecodable):
            continue
    return _as_it_is(body, coding)


def _marked(body: bytes) -> _Decoder | None:
    """The coding that the first bytes of a body tell."""
    if body.startswith(b"\x1f\x8b\x08"):
        return _gzip
    return _zstd if body.startswith(_ZSTD_MARK) else None


def _as_it_is(body: bytes, coding: bytes) -> bytes:
    """A body that was stored decoded; it must look like text."""
    head = body[:1024]
    controls = len(head) - len(head.translate(None, bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))))
    text = head.decode("utf-8", "replace")
    if controls or (text.count("\ufffd") > 0.1 * len(text) and b"<" not in head):
        raise Undecodable(f"damaged or truncated {coding.decode('ascii', 'replace')[:20]} data")
    return body


def _gzip(body: bytes, most: int) -> bytes:
    return _inflated(body, 31, most)


def _zlib(body: bytes, most: int) -> bytes:
    """With zlib's head, as the standard has it for "deflate"."""
    if body[0] & 15 != 8 or int.from_bytes(body[:2], "big") % 31:
        raise Undecodable("no zlib data")
    return _inflated(body, 15, most)


def _deflate(body: bytes, most: int) -> bytes:
    """Without a head, as some servers send it."""
    return _inflated(body, -15, most)


def _inflated(body: bytes, window: int, most: int) -> bytes:
    pieces, size = list[bytes](), 0
    while body:
        reader = zlib.decompressobj(window)
        pieces.append(reader.decompress(body, most + 1 - size))
        size += len(pieces[-1])
        if size > most:
            raise TooLong
        if not reader.eof:
            raise Undecodable("truncated compressed body")
        body = reader.unused_data if window == 31 and reader.unused_data.startswith(b"\x1f\x8b") else b""
    return b"".join(pieces)


def _brotli(body: bytes, most: int) -> bytes:
    reader: Any = brotli.Decompressor()
    text = reader.process(body, output_buffer_limit=most + 1)
    while not reader.is_finished() and len(text) <= most and not reader.can_accept_more_data():
        text += reader.process(b"", output_buffer_limit=most + 1 - len(text))
    if len(text) > most:
        raise TooLong
    if not reader.is_finished():
        raise Undecodable("truncated compressed body")
    return bytes(text)


def _zstd(body: bytes, most: int) -> bytes:
    pieces, size = list[bytes](), 0
    while body:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        for start in range(0, len(body), 1 << 12):  # a block may unfold to 128 KiB for few bytes
            pieces.append(reader.decompress(body[start : start + (1 << 12)]))
            size += len(pieces[-1])
            if size > most:
                raise TooLong
            if reader.eof:
                body = reader.unused_data + body[start + (1 << 12) :]
                break
        else:
            raise Undecodable("truncated compressed body")
    return b"".join(pieces)


_Decoder = Callable[[bytes, int], bytes]
_ZSTD_MARK = zstandard.MAGIC_NUMBER.to_bytes(4, "little")
_CODINGS: dict[bytes, tuple[_Decoder, ...]] = {
    b"gzip": (_gzip,), b"x-gzip": (_gzip,), b"deflate": (_zlib, _deflate), b"br": (_brotli,), b"zstd": (_zstd,),
}  # fmt: skip
