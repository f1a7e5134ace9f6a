"""HTTP responses in archives: heads of every kind, bodies in every coding, and bodies that are not what their head
says."""

import gzip
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources.response import (
    Response,
    TooLong,
    Undecodable,
    body_of,
    head_fields,
    media_type,
    response_of,
)

BODY = b"<html><p>" + b"The forge was hot and the smith was tired. " * 40 + b"</html>"
MOST = 1 << 20


def deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def chunked(body: bytes, size: int = 100, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in pieces) + b"0\r\n%b\r\n" % trailer


PACKED = {
    "": BODY, "gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY), "raw": deflated(BODY),
    "br": brotli.compress(BODY), "zstd": zstandard.compress(BODY),
}  # fmt: skip
NAMES = ["gzip", "x-gzip", "deflate", "br", "zstd", "GZIP", "x-unknown"]


def body(sent: bytes, **fields: str) -> bytes:
    return body_of(Response(200, {name.replace("_", "-"): value for name, value in fields.items()}, sent), MOST)


@pytest.mark.parametrize("packed", [name for name in PACKED if name != "raw"])
@pytest.mark.parametrize("named", NAMES)
def test_the_bytes_tell_the_coding_whatever_the_head_says(packed: str, named: str) -> None:
    assert body(PACKED[packed], content_encoding=named) == BODY


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
@pytest.mark.parametrize("size", [1, 171, 4096])
def test_chunks_and_codings_together_and_each_alone(coding: str, size: int) -> None:
    both = {"content_encoding": coding, "transfer_encoding": "Chunked"}
    assert body(chunked(PACKED[coding], size), **both) == BODY
    assert body(PACKED[coding], **both) == BODY  # chunks joined already
    assert body(chunked(BODY, size), **both) == BODY  # unfolded already
    assert body(BODY, **both) == BODY


def test_chunks_with_extensions_and_trailers_and_two_codings() -> None:
    assert body(chunked(BODY, 50, b";a=b", b"X: y\r\n"), transfer_encoding="chunked") == BODY
    assert body(chunked(gzip.compress(BODY)), transfer_encoding="gzip, chunked") == BODY
    assert body(brotli.compress(gzip.compress(BODY)), content_encoding="gzip, br") == BODY
    assert body(gzip.compress(BODY[:99]) + gzip.compress(BODY[99:]), content_encoding="gzip") == BODY
    assert body(deflated(BODY), content_encoding="deflate") == BODY
    assert body(b"0\r\n\r\n", transfer_encoding="chunked") == b""


@pytest.mark.parametrize("coding", ["", "gzip", "br"])
def test_chunks_that_no_head_names_are_joined(coding: str) -> None:
    fields = {"content-encoding": coding} if coding else {}
    assert body_of(Response(200, fields, chunked(PACKED[coding])), MOST) == BODY
    numbers = b"12\r\nis a dozen\r\nand no chunk\r\n"  # a text that begins as a chunk would
    assert body_of(Response(200, {}, numbers), MOST) == numbers


def test_a_body_packed_in_silence_is_unfolded() -> None:
    assert body(gzip.compress(BODY)) == body(zstandard.compress(BODY)) == BODY


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_prefix_of_a_packed_body_is_undecodable(coding: str, data: st.DataObject) -> None:
    packed = PACKED[coding]
    cut = data.draw(st.integers(12, len(packed) - 1))
    with pytest.raises(Undecodable):
        body(packed[:cut], content_encoding=coding)
    with pytest.raises(Undecodable):
        body(
            chunked(packed, 40)[: -data.draw(st.integers(8, 30))], content_encoding=coding, transfer_encoding="chunked"
        )


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
def test_a_bomb_is_too_long(coding: str) -> None:
    zeros = bytes(8 << 20)
    packed = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstandard.compress, "deflate": zlib.compress}
    with pytest.raises(TooLong):
        body(packed[coding](zeros), content_encoding=coding)


@pytest.mark.parametrize(
    "status", ["HTTP/1.1 200 OK", "HTTP/1.0 200", "HTTP/2 200", "HTTP/2.0 200 OK", "ICY 200 OK", "HTTP/1.1 200"]
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_status_lines(status: str, end: bytes) -> None:
    response = response_of(status.encode() + end + b"CONTENT-type:text/html" + end + end + b"body")
    assert response == (200, {"content-type": "text/html"}, b"body")


@pytest.mark.parametrize(
    "before",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
     b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 3],
)  # fmt: skip
def test_what_comes_before_the_response_is_passed_over(before: bytes) -> None:
    own = b"HTTP/1.1 404 Gone\r\nContent-Type: text/html\r\n\r\nHTTP/1.1 200 is what you want\r\n\r\n"
    response = response_of(before + own)
    assert response is not None
    assert (response.status, response.body[:8]) == (404, b"HTTP/1.1")


@pytest.mark.parametrize(
    "block", [b"", b"words", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_what_is_no_response(block: bytes) -> None:
    assert response_of(block) is None


def test_fields_and_media_types() -> None:
    lines = [b"A: 1\r", b" folded\r", b"a: second\r", b" folded too", b"no colon", b": no name", b"B:"]
    assert head_fields(lines) == {"a": "1 folded", "b": ""}
    assert media_type('Text/HTML; Charset="ISO-8859-1"') == ("text/html", "ISO-8859-1")
    assert media_type("text/plain;charset='utf-8' ; x=y") == ("text/plain", "utf-8")
    assert media_type("") == ("", None)
