"""Web pages as documents: WARC and WET archives, folders of HTML. Of a page only its main content is kept.

    archive ─records─▶ HTML pages with status 200 ─decode─▶ text of the markup ─resiliparse─▶ main content ─▶ documents

Pages come from strangers: their size, nesting and attributes are bounded, because the time of the extraction grows with
the square of the nesting (a page of 100,000 nested elements takes minutes), that of the parsing with the square of a
tag's attributes.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import zstandard

from lmforge.corpus.sources.decode import blocks_of, members_of, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import SPLIT_ABOVE, File, Part, byte_ranges, cut, files_of, gathered
from lmforge.errors import InputError
from lmforge.recipe import Source

WARC = tuple(f".{kind}{packed}" for kind in ("warc", "wet") for packed in ("", ".gz", ".zst", ".bz2"))
HTML = (".html", ".htm", ".xhtml")
LARGEST_PAGE = 4 << 20  # bytes; Common Crawl cuts pages at 5 MiB, nearly all are below 1
DEEPEST = 256  # elements inside one another; browsers allow 512, written pages stay below 30
MOST_ATTRIBUTES = 1000  # of one tag; the parser compares each with those before it
PAGE_TYPES = ("text/html", "application/xhtml+xml")
# What is not the page's own text, by a part of the class name; found to matter on labelled pages (docs/log.md).
_ASIDE = (
    "comment",
    "gallery",
    "slideshow",
    "carousel",
    "related",
    "recommend",
    "newsletter",
    "subscribe",
    "signup",
    "promo",
    "share",
    "social",
    "cookie",
    "breadcrumb",
    "author-bio",
)
SKIPPED = [f'{element}[class*="{part}"]' for element in ("div", "section", "aside", "ul") for part in _ASIDE]
_TOO_LITTLE = 250  # characters of main content below which a class name may have stood for the whole page
# an element inside so many others; finding none takes a twentieth of the parsing
_TOO_DEEP = " > ".join("*" * (DEEPEST + 1))
_LONG_TAG = re.compile(r"""<[a-zA-Z](?=[^>]{4000})(?:[^>"']++|"[^"]*+"|'[^']*+')*+""")


_REST = "rest of a damaged archive"


class Unfit(Exception):
    """A page that is not worth, or not safe, to parse; the message is the reason it is counted under."""


# Pages


def page_text(html: str) -> tuple[str, str]:
    """(main content as plain text, title) of an HTML page.

    Raises:
        Unfit: it is too large, or nested or attributed beyond what any written page is.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    if len(html) > LARGEST_PAGE:
        raise Unfit("page beyond 4 MiB")
    if any(tag.count("=") > MOST_ATTRIBUTES for tag in _LONG_TAG.findall(html)):
        raise Unfit("page with a tag of too many attributes")
    tree = HTMLTree.parse(html)
    if tree.document and tree.document.query_selector(_TOO_DEEP) is not None:
        raise Unfit("page nested too deeply")
    text = extract_plain_text(tree, main_content=True, alt_texts=False, skip_elements=SKIPPED)
    if len(text) < _TOO_LITTLE:
        text = extract_plain_text(tree, main_content=True, alt_texts=False)
    return text.strip(), " ".join((tree.title or "").split())


def decoded(data: bytes, charset: str | None = None) -> str:
    """A page's bytes as text: UTF-8 where they are that; else in the named character set, the page's own, or the
    likeliest."""
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        named = map_encoding_to_html5(charset, False) if charset else None
        encoding = named or detect_encoding(data, from_html_meta=True)
        return str(bytes_to_str(data, encoding or "windows-1252", errors="replace"))


# A folder of pages


def html_files(source: Source, notices: Counter[str]) -> list[File]:
    """HTML files."""
    return files_of(source, HTML, notices)


def html_parts(source: Source, notices: Counter[str]) -> list[Part]:
    """Files, gathered."""
    return gathered(html_files(source, notices))


def read_html(reading: Reading, part: Part) -> Iterator[Document]:
    """One document for each page that has main content."""
    for file in part.files:
        try:
            with file.path.open("rb") as stream:
                data = stream.read(LARGEST_PAGE + 1)
        except OSError as error:
            raise unreadable(file.path, error) from error
        yield from _page(reading, data, None, file.name, {}, str(file.path))


def _page(
    reading: Reading, data: bytes, charset: str | None, name: str, meta: dict[str, Any], where: str
) -> Iterator[Document]:
    try:
        text, title = page_text(decoded(data, charset))
    except Unfit as error:
        reading.damaged(
            str(error), InputError(f'{where}: {error}; leave it out, or set the source\'s damaged to "skip"')
        )
        return
    if text:
        yield reading.document(name, text, meta={**meta, "title": title} if title else meta)
    else:
        reading.notices["ignored: page without main content"] += 1


# Archives


def warc_files(source: Source, notices: Counter[str]) -> list[File]:
    """WARC and WET files."""
    return files_of(source, WARC, notices)


def warc_parts(source: Source, notices: Counter[str]) -> list[Part]:
    """Files, gathered; crawls come in files of about 1 GB of gzip members, one a record, which are read in ranges."""
    files = warc_files(source, notices)
    return cut(
        files, [(file, byte_ranges(file)) for file in files if file.size > SPLIT_ABOVE and file.name.endswith(".gz")]
    )


def read_warc(reading: Reading, part: Part) -> Iterator[Document]:
    """One document for each HTML or plain-text page fetched with status 200 (WARC), or each extracted text (WET)."""
    for file in part.files:
        count = [0]
        try:
            yield from _records(reading, file, part, count)
        except (EOFError, zlib.error, zstandard.ZstdError) as error:
            reading.damaged(_REST, _not_warc(file, count[0], str(error)))
        except OSError as error:  # fastwarc reports records that it cannot parse as OSError without an errno
            if error.errno is not None:
                raise unreadable(file.path, error) from error
            reading.damaged(_REST, _not_warc(file, count[0], str(error)))
        except BaseException as error:  # a panic of its Rust code, which is no Exception
            if type(error).__name__ != "PanicException":
                raise
            reading.damaged(_REST, _not_warc(file, count[0], "a record that cannot be parsed"))


def _not_warc(file: File, count: int, cause: str) -> InputError:
    return InputError(f"{file.path}: {cause}; readable up to record {count}; fetch the archive again")


def _records(reading: Reading, file: File, part: Part, count: list[int]) -> Iterator[Document]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    wanted = WarcRecordType.response | WarcRecordType.conversion
    stream = _Stream(
        blocks_of(file.path) if part.stop is None else members_of(file.path, part.start, part.stop, b"WARC/")
    )
    for record in ArchiveIterator(stream, record_types=wanted, parse_http=True, auto_decode="all", stream_detect=False):
        count[0] += 1
        length = record.content_length
        data = record.reader.read(LARGEST_PAGE + 1)
        name = (record.record_id or "").strip("<>").removeprefix(
            "urn:uuid:"
        ) or f"{file.name}{f'@{part.start}' if part.start else ''}:{count[0]}"
        meta = {key: value for key, header in (("url", "WARC-Target-URI"), ("date", "WARC-Date"))
                if (value := (record.headers.get(header) or "").strip("<>"))}  # fmt: skip
        encoded = record.http_headers is not None and (
            "Content-Encoding" in record.http_headers or "Transfer-Encoding" in record.http_headers
        )
        if len(data) < min(length, LARGEST_PAGE) and not encoded:
            raise EOFError("truncated inside a record")
        where = f"{file.path} record {count[0]}"
        if len(data) > LARGEST_PAGE:
            reading.damaged(
                "page beyond 4 MiB", InputError(f'{where}: page beyond 4 MiB; set the source\'s damaged to "skip"')
            )
        elif record.record_type == WarcRecordType.conversion:
            yield reading.document(name, data.decode("utf-8", "replace"), meta=meta)
        elif reason := _passed_over(record):
            reading.notices[f"ignored: {reason}"] += 1
        elif (record.http_content_type or "").startswith("text/plain"):
            yield reading.document(name, decoded(data, record.http_charset), meta=meta)
        else:
            yield from _page(reading, data, record.http_charset, name, meta, where)
    if not stream.tail.endswith((b"\n\r\n", b"\n\n")) and stream.tail:
        raise EOFError("truncated inside a record's header")


def _passed_over(record: Any) -> str | None:
    if record.http_headers is None:
        return "response without HTTP headers"
    if record.http_headers.status_code != 200:
        return "page whose status is not 200"
    return None if (record.http_content_type or "") in (*PAGE_TYPES, "text/plain") else "response that is no page"


class _Stream(io.RawIOBase):
    """Blocks of bytes as a file that knows its place but only goes forward. Damage in the blocks is raised where it is
    read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._held, self._place = blocks, b"", 0
        self.tail = b""  # the last bytes read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if (whence, offset) not in ((io.SEEK_CUR, 0), (io.SEEK_SET, self._place)):
            raise io.UnsupportedOperation("seek")
        return self._place

    def read(self, size: int = -1) -> bytes:
        if not self._held:
            self._held = next(self._blocks, b"")
        piece, self._held = (self._held, b"") if size < 0 else (self._held[:size], self._held[size:])
        self._place += len(piece)
        self.tail = (self.tail + piece[-4:])[-4:]
        return piece
