"""MediaWiki dumps (`pages-articles.xml`, plain or compressed) as documents: page by page, each on its own.

    dump ─<page>…</page>─▶ namespace 0, no redirect ─▶ wikitext ─▶ plain text (wikitext.py)

A page that is no XML, or ends before it should, is one damaged page; the dump is read to its end, which is
</mediawiki>.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from lmforge.corpus.sources.decode import LONGEST_LINE, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import File, SourcePart, files_of, gathered
from lmforge.corpus.sources.unfold import COMPRESSED, blocks_and_breaks
from lmforge.corpus.sources.wikitext import namespaces_of, plain_text
from lmforge.errors import InputError
from lmforge.recipe import Source

DUMPS = tuple(f".xml{packed}" for packed in ("", *COMPRESSED))
LARGEST_PAGE = LONGEST_LINE  # bytes of XML; MediaWiki itself allows 2 MiB of wikitext
DEEPEST = 40  # XML elements inside one another, of which there are 5
DAMAGED_PAGE = "damaged page of a dump"
_OPEN, _OPENS, _CLOSE, _END = b"<page>", re.compile(rb"<page[\s>]"), b"</page>", b"</mediawiki>"
_DECLARATION = re.compile(rb"\s*(?:\xef\xbb\xbf)?(<\?xml[^>]*\?>)")
_NAMESPACE = re.compile(r"<namespace\b[^>]*\bkey=\"(-?\d+)\"[^>]*>([^<]*)</namespace>")
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig|hndis|geodis|begriffsklärung|homonymie|desambiguaci|desambigua|disambigua|неоднозначность|"
    r"многозначность|багатозначність|曖昧さ回避|aimai|消歧义|消歧義|ujednoznacznienie|توضيح|동음이의|"
    r"anlam ayrımı|rozcestník)"
    r"|__DISAMBIG__",
    re.IGNORECASE,
)


class _Damage(NamedTuple):
    """Something in the dump that is no whole page."""

    cause: str


def mediawiki_files(source: Source, notices: Counter[str]) -> list[File]:
    """Dumps."""
    return files_of(source, DUMPS, notices)


def mediawiki_parts(source: Source, notices: Counter[str]) -> list[SourcePart]:
    """Files, gathered; large wikis are published in many."""
    return gathered(mediawiki_files(source, notices))


def read_mediawiki(reading: Reading, part: SourcePart) -> Iterator[Document]:
    """One document for each article, named after its page number; redirects, disambiguations and other namespaces are
    counted."""
    for file in part.files:
        count, namespaces = 0, namespaces_of({})
        try:
            for piece in _pieces(file):
                page = _page(piece) if isinstance(piece, bytes) else piece
                if isinstance(page, dict) and "namespaces" in page:
                    namespaces = namespaces_of({int(key): name for key, name in _NAMESPACE.findall(page["namespaces"])})
                elif isinstance(page, _Damage):
                    message = f"{file.path}: {page.cause}; readable up to page {count}; fetch the dump again"
                    reading.damaged(DAMAGED_PAGE, InputError(message))
                else:
                    count += 1
                    yield from _document(reading, page, f"{file.name}:{count}", namespaces)
        except OSError as error:
            raise unreadable(file.path, error) from error


def _document(reading: Reading, page: dict[str, str], name: str, namespaces: dict[str, int]) -> Iterator[Document]:
    if reason := page.get("reason", ""):
        reading.notices[f"ignored: {reason}"] += 1
    else:
        text = plain_text(page["text"], namespaces)
        yield reading.document(page["id"] or name, text, meta={"title": page["title"]})


def _pieces(file: File) -> Iterator[bytes | dict[str, str] | _Damage]:
    """The XML of each page, with the dump's declaration of its encoding before it; what stands before the first as
    {namespaces: …}; and damage. Memory holds one page."""
    held, declaration, begun, ended, nonempty = bytearray(), b"", False, False, False
    place, opened = 0, False  # in `held`: where to look on, and whether a page lies at its beginning
    for block in blocks_and_breaks(file.path):
        if not isinstance(block, bytes):
            if block.cause:  # what is held is torn, and what follows may be
                yield _Damage(block.cause)
                held, place, opened, ended, begun = bytearray(), 0, False, True, True
            continue
        nonempty = nonempty or bool(block)
        ended = False
        held += block
        while True:
            if not opened:
                at = _opens(held, place)
                if not begun and (at >= 0 or len(held) > LARGEST_PAGE >> 4):
                    begun = True
                    preamble = bytes(held[: at if at >= 0 else None])
                    declaration = match[1] if (match := _DECLARATION.match(preamble)) else b""
                    yield {"namespaces": preamble.decode("utf-8", "replace")}
                if at < 0:
                    ended = held.find(_END) >= 0
                    if begun:  # nothing but the end of the dump stands here
                        del held[: max(0, len(held) - len(_END))]
                        place = 0
                    break
                del held[:at]
                place, opened = len(_OPEN), True
            again = _opens(held, place)
            close = held.find(_CLOSE, place, again if again >= 0 else len(held))
            if again >= 0 and (again < close or close < 0):
                yield _Damage("a page without its end")
                place, opened = again, False
            elif close >= 0:
                yield declaration + bytes(held[: close + len(_CLOSE)])
                place, opened = close + len(_CLOSE), False
            elif len(held) > LARGEST_PAGE:
                yield _Damage(f"a page longer than {LARGEST_PAGE >> 20} MiB")
                held, place, opened = bytearray(held[-len(_OPEN) :]), 0, False
            else:
                place = max(len(_OPEN), len(held) - len(_CLOSE))
                break
    if opened or not (ended or (not opened and held.find(_END) >= 0)):
        what = "ends within a page" if opened else "no dump, or one without its end (</mediawiki>)"
        yield _Damage(what)


def _opens(held: bytearray, place: int) -> int:
    match = _OPENS.search(held, place)
    return match.start() if match else -1


def _page(xml: bytes) -> dict[str, str] | _Damage:
    """{title, id, text} or {…, reason to pass it over} of a page."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
    depth, root = 0, None
    try:
        for start in range(0, len(xml), 1 << 18):  # few elements at a time
            parser.feed(xml[start : start + (1 << 18)])
            for event, element in cast(Iterator[tuple[str, ElementTree.Element]], parser.read_events()):
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if depth > DEEPEST:
                    return _Damage("elements nested too deeply")
        parser.close()
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        return _Damage(f"a page that is no XML ({error})")
    return _Damage("a page that is empty") if root is None else _fields(root)


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _fields(element: ElementTree.Element) -> dict[str, str]:
    page = {"title": "", "id": "", "text": ""}
    for child in element:
        name = _local(child)
        if name in ("title", "id"):
            page[name] = child.text or ""
        elif name == "ns" and (child.text or "0").strip() != "0":
            page["reason"] = "page outside the article namespace"
        elif name == "redirect":
            page["reason"] = "redirect"
        elif name == "revision":  # of a history the last one stands
            page["text"] = next((part.text or "" for part in child if _local(part) == "text"), "")
    if _REDIRECT.match(page["text"]):
        page.setdefault("reason", "redirect")
    elif _DISAMBIGUATION.search(page["text"]):
        page.setdefault("reason", "disambiguation page")
    return page
