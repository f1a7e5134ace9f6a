"""The bytes of a web page → text: UTF-8 where they are that, else the character set that the head or the page names, if
they are in it, else the likeliest.

Servers name one set for all of their pages, and pages name the one of the program that wrote them; a name in which the
bytes do not decode, or look strange, is no better than none.
"""

from __future__ import annotations

import codecs
import re

from lmforge.corpus.sources import encodings
from lmforge.corpus.sources.encodings import NotText, mostly_utf8
from lmforge.corpus.sources.strangeness import MOST_STRANGE, strangeness

_NAMED = re.compile(
    rb"""<(?:meta|\?xml)\b[^>]{0,400}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_HEAD = 4096  # bytes in which a page names its character set
_SAMPLE = 1 << 16
_TAG = re.compile(rb"<[^<>]*>")


def decoded(data: bytes, charset: str | None = None) -> str:
    """A page's bytes as text; `charset`: the set that its head names.

    Raises:
        NotText: they are not UTF-8, name no set, and none can be told with confidence.
    """
    try:
        text = data.decode("utf-8-sig")
        if "\x1b" not in text or not text.isascii():
            return text
    except UnicodeDecodeError as error:
        if mostly_utf8(data[: error.start] if error.reason == "unexpected end of data" else data):
            return data.decode("utf-8", "replace")  # a stray byte, or a last character that is cut
    match = _NAMED.search(data, 0, _HEAD)
    named = [_codec(name) for name in (charset, match[1].decode("ascii", "replace") if match else None) if name]
    known = [name for name in named if name is not None]
    for name in known:
        if name != "utf-8" and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and _fits(data, name):
            return _read(data, name)
    try:
        encoding = encodings.encoding_of(lambda: [data])
    except NotText:
        if not known:
            raise
        return _read(data, known[0])
    return "".join(encodings.decoded([data], encoding))


def _read(data: bytes, name: str) -> str:
    return data.decode(name, "replace")


def _codec(name: str) -> str | None:
    """The codec that browsers use for a name (https://encoding.spec.whatwg.org); None where they know none."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    try:
        return codecs.lookup(map_encoding_to_html5(name, False) or "").name
    except LookupError:
        return None


def _fits(data: bytes, name: str) -> bool:
    """Whether the bytes look like text in this encoding."""
    lines = [line for line in _TAG.sub(b" ", data[: 4 * _SAMPLE]).split(b"\n") if not line.isascii() or b"\x1b" in line]
    sample = b"\n".join(lines)[:_SAMPLE]
    if name.startswith(("utf", "iso2022", "hz")):
        return "\ufffd" not in data.decode(name, "replace")
    return not sample or strangeness(sample, name.replace("-", "_")) <= MOST_STRANGE
