"""Web pages as documents: WARC and WET archives, folders of HTML. Of a page only its main content is kept.

    archive ─records─▶ HTML pages with status 200 ─decode─▶ text of the markup ─resiliparse─▶ main content ─▶ documents

Pages come from strangers: their size, nesting and attributes are bounded, because the time of the extraction grows with
the square of the nesting (a page of 100,000 nested elements takes minutes), that of the parsing with the square of a
tag's attributes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lmforge.corpus.sources.charsets import decoded
from lmforge.corpus.sources.decode import unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.encodings import NotText
from lmforge.corpus.sources.files import SPLIT_ABOVE, File, SourcePart, byte_ranges, cut, files_of, gathered
from lmforge.corpus.sources.formulas import write_formulas
from lmforge.corpus.sources.response import Response, TooLong, Undecodable, body_of, media_type, response_of
from lmforge.corpus.sources.unfold import COMPRESSED, blocks_and_breaks, members_of
from lmforge.corpus.sources.warc import MOST_HELD, Damage, WarcRecord, records_of
from lmforge.errors import InputError
from lmforge.recipe import Source

WARC = tuple(f".{kind}{packed}" for kind in ("warc", "wet") for packed in ("", *COMPRESSED))
HTML = tuple(f".{kind}{packed}" for kind in ("html", "htm", "xhtml") for packed in ("", *COMPRESSED))
LARGEST_PAGE = 4 << 20  # bytes; Common Crawl cuts pages at 5 MiB, nearly all are below 1
DEEPEST = 256  # elements inside one another; browsers allow 512, written pages stay below 30
MOST_ATTRIBUTES = 1000  # of one tag; the parser compares each with those before it
PAGE_TYPES = ("text/html", "application/xhtml+xml")
# What is not the page's own text, by a part of the class name; found to matter on labelled pages
# (docs/internals/log.md).
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
# marks of footnotes, which the elements tell from what else stands in brackets, such as an index in a program
_FOOTNOTES = ["sup.reference", "sup.footnote-ref", 'sup[id^="cite_ref"]', 'sup[id^="fnref"]', "a.footnote-ref"]
_FOOTNOTES += ["a.footnote-backref", 'a[href^="#cite_note"]', 'a[href^="#fn"]', 'a[role="doc-noteref"]']
_FOOTNOTES += ["span.mw-editsection"]
SHALLOW = 5  # elements below the root within which resiliparse takes a list for navigation, with some to spare
MOST_LISTS = 500  # of a page that are looked after
_BESIDE = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "blockquote", "pre", "table", "figure"))
_TOO_LITTLE = 250  # characters of main content below which a class name may have stood for the whole page
# an element inside so many others; finding none takes a twentieth of the parsing
_TOO_DEEP = " > ".join("*" * (DEEPEST + 1))
_END = 1000  # characters within which the end of a page is looked for
_ENCLOSED = (("<!--", ("-->", "</html", "</body")), ("<script", ("</script",)), ("<style", ("</style",)))
_LONG_TAG = re.compile(r"""<[a-zA-Z](?=[^>]{4000})(?:[^>"']++|"[^"]*+"|'[^']*+')*+""")

MOST_STORED = MOST_HELD  # bytes of a record, compressed or not
DAMAGED_RECORD = "damaged record of an archive"


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
    if tree.document:
        write_formulas(tree, html)
        _keep_lists(tree)
    text = extract_plain_text(tree, main_content=True, alt_texts=False, skip_elements=[*SKIPPED, *_FOOTNOTES])
    if len(text) < _TOO_LITTLE:
        text = extract_plain_text(tree, main_content=True, alt_texts=False, skip_elements=_FOOTNOTES)
    return text.strip(), " ".join((tree.title or "").split())


def _keep_lists(tree: Any) -> None:
    """Lists of the page's own text are put deeper into it, because resiliparse takes any `ul` near the root for
    navigation: those beside a paragraph or a heading whose items are words rather than links."""
    # a slice, since these collections are asked anew at every step of a loop over them
    for element in tree.document.query_selector_all("ul")[:MOST_LISTS]:
        if not _is_shallow(element) or not _is_text(element):
            continue
        outer = inner = tree.create_element("div")
        for _ in range(SHALLOW):
            inner = inner.append_child(tree.create_element("div"))
        element.parent.replace_child(outer, element)
        inner.append_child(element)


def _is_shallow(element: Any) -> bool:
    above = element.parent
    for _ in range(SHALLOW):
        if above is None or above.tag in ("nav", "header", "footer", "aside", "form"):
            return False
        if above.tag in ("body", "html"):
            return True
        above = above.parent
    return False


def _is_text(element: Any) -> bool:
    """Whether a list stands beside a paragraph, a heading or such, and at most half of its words are links."""
    beside = (element.prev_element, element.next_element)
    if not any(each is not None and each.tag in _BESIDE for each in beside):
        return False
    words = len("".join(element.text.split()))
    linked = sum(len("".join(link.text.split())) for link in element.query_selector_all("a")[:])
    return words > 0 and 2 * linked <= words


def is_cut(html: str) -> bool:
    """Whether a page surely ends before its end: within a tag, a comment, a script or a style sheet.

    A page without </body> and </html> may be whole, for HTML lets them be left out: its text is kept."""
    if "</html" in html[-_END:].lower():
        return False
    tag = html.rfind("<")
    if tag > html.rfind(">") and (html[tag + 1 : tag + 2].isalpha() or html[tag + 1 : tag + 2] in ("/", "!")):
        return True
    low = html.lower()
    return any(low.rfind(begin) > max(map(low.rfind, ends)) for begin, ends in _ENCLOSED)


# A folder of pages


def html_files(source: Source, notices: Counter[str]) -> list[File]:
    """HTML files."""
    return files_of(source, HTML, notices)


def html_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered."""
    return gathered(html_files(source, notices))


def read_html(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each page that has main content."""
    for file in part.files:
        data, cause = b"", None
        try:
            for block in blocks_and_breaks(file.path):
                data, cause = (data + block, cause) if isinstance(block, bytes) else (data, cause or block.cause)
                if len(data) > LARGEST_PAGE or cause:
                    break
        except OSError as error:
            raise unreadable(file.path, error) from error
        if cause:
            reading.damaged(
                "damaged or truncated page", InputError(f"{file.path}: {cause}; fetch or compress it again")
            )
        else:
            yield from _page(reading, data, None, file.name, {}, str(file.path))


def _text_of(data: bytes, charset: str | None) -> str:
    try:
        return decoded(data, charset)
    except NotText as error:
        raise Unfit("page of unknown encoding") from error


def _plain(
    reading: Reading, data: bytes, charset: str | None, name: str, meta: dict[str, Any], where: str
) -> Iterator[Document]:
    try:
        yield reading.document(name, _text_of(data, charset), meta=meta)
    except Unfit as error:
        _refuse(reading, error, where)


def _refuse(reading: Reading, error: Unfit, where: str) -> None:
    reading.damaged(str(error), InputError(f'{where}: {error}; leave it out, or set the source\'s damaged to "skip"'))


def _page(
    reading: Reading, data: bytes, charset: str | None, name: str, meta: dict[str, Any], where: str
) -> Iterator[Document]:
    try:
        html = _text_of(data, charset)
        if len(html) <= LARGEST_PAGE and is_cut(html):
            raise Unfit("page that ends within a tag")
        text, title = page_text(html)
    except Unfit as error:
        _refuse(reading, error, where)
        return
    if text:
        yield reading.document(name, text, meta={**meta, "title": title} if title else meta)
    else:
        reading.notices["ignored: page without main content"] += 1


# Archives


def warc_files(source: Source, notices: Counter[str]) -> list[File]:
    """WARC and WET files."""
    return files_of(source, WARC, notices)


def warc_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered; crawls come in files of about 1 GB of gzip members, one a record, which are read in ranges."""
    files = warc_files(source, notices)
    return cut(
        files,
        [(file, byte_ranges(file)) for file in files if file.size > SPLIT_ABOVE and file.name.lower().endswith(".gz")],
    )


def read_warc(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each HTML or plain-text page fetched with status 200 or stored as a resource (WARC), or each
    extracted text (WET)."""
    for file in part.files:
        count = 0
        try:
            if part.stop is None:
                stream = blocks_and_breaks(file.path)
            else:
                stream = members_of(file.path, part.start, part.stop, b"WARC/")
            for record in records_of(stream):
                if isinstance(record, Damage):
                    cause = f"{file.path}: {record.cause}; readable up to record {count}; fetch the archive again"
                    reading.damaged(DAMAGED_RECORD, InputError(cause))
                    continue
                count += 1
                if record.kind in ("revisit", "continuation"):  # a page that was stored before; the rest of a long one
                    reading.notices[f"ignored: {record.kind} record"] += 1
                elif record.kind in ("response", "resource", "conversion"):
                    name = record.fields.get("warc-record-id", "").strip("<>").removeprefix("urn:uuid:")
                    place = f"{file.name}{f'@{part.start}' if part.start else ''}:{count}"
                    yield from _stored(reading, record, name or place, f"{file.path} record {count}")
        except OSError as error:
            raise unreadable(file.path, error) from error


def _stored(reading: Reading, record: WarcRecord, name: str, where: str) -> Iterator[Document]:
    """The document in a record, if there is one."""
    meta = {key: value for key, header in (("url", "warc-target-uri"), ("date", "warc-date"))
            if (value := record.fields.get(header, "").strip("<>"))}  # fmt: skip
    if record.length > MOST_STORED:
        reading.damaged(
            "page beyond 4 MiB", InputError(f'{where}: page beyond 4 MiB; set the source\'s damaged to "skip"')
        )
        return
    if "warc-segment-number" in record.fields:
        cause = 'the first part of a record in segments; set the source\'s damaged to "skip"'
        reading.damaged("record in segments", InputError(f"{where}: {cause}"))
        return
    if record.kind == "conversion":
        yield reading.document(name, record.block.decode("utf-8", "replace"), meta=meta)
        return
    content_type = record.fields.get("content-type", "")
    response: Response | None = Response(200, {"content-type": content_type}, record.block)
    if record.kind == "response" or media_type(content_type)[0] == "application/http":
        response = response_of(record.block)
        if response is None and _is_page(record.block):  # HTTP/0.9: no head
            response = Response(200, {}, record.block)
    kind, charset = media_type(response.fields.get("content-type", "")) if response else ("", None)
    if reason := _passed_over(response, kind):
        reading.notices[f"ignored: {reason}"] += 1
        return
    assert response is not None
    try:
        if "warc-truncated" in record.fields:
            raise Undecodable(f"cut short by its crawler ({record.fields['warc-truncated'][:20]})")
        body = body_of(response, LARGEST_PAGE)
    except TooLong:
        reading.damaged(
            "page beyond 4 MiB", InputError(f'{where}: page beyond 4 MiB; set the source\'s damaged to "skip"')
        )
    except Undecodable as error:
        reading.damaged(
            "record whose page cannot be decoded",
            InputError(f'{where}: {error}; fetch the archive again, or set the source\'s damaged to "skip"'),
        )
    else:
        if kind == "text/plain":
            yield from _plain(reading, body, charset, name, meta, where)
        elif kind or _is_page(body):
            yield from _page(reading, body, charset, name, meta, where)
        else:
            reading.notices["ignored: response that is no page"] += 1


def _passed_over(response: Response | None, kind: str) -> str | None:
    if response is None:
        return "response without HTTP headers"
    if response.status not in (200, 203):  # 203: a proxy changed something on the way
        return "page whose status is not 200"
    return None if kind in (*PAGE_TYPES, "text/plain", "") else "response that is no page"


def _is_page(body: bytes) -> bool:
    """Whether a body of no named type begins as a page does."""
    return body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))
