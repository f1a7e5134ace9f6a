"""MediaWiki dumps (`pages-articles.xml`, plain, bzip2, gzip or Zstandard) as documents: wikitext → plain text, page by
page.

    <page> ─namespace 0, no redirect─▶ wikitext ─▶ without comments, references, templates, tables, files ─▶ links as
    words ─▶ lines

Every step passes once over the text, so that no page, however malformed, takes longer than its length warrants.
"""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from lmforge.corpus.sources.decode import LONGEST_LINE, blocks_of, unreadable
from lmforge.corpus.sources.document import Document, Reading
from lmforge.corpus.sources.files import File, Part, files_of, gathered
from lmforge.errors import InputError
from lmforge.recipe import Source

DUMPS = (".xml", ".xml.bz2", ".xml.gz", ".xml.zst")
LARGEST_PAGE = LONGEST_LINE  # bytes of XML; MediaWiki itself allows 2 MiB of wikitext
_SLICE = 1 << 18  # bytes
# templates, tables and links inside one another, as MediaWiki allows; and XML elements, of which there are 5
DEEPEST = 40
_REDIRECT = re.compile(r"\s*#redirect\b", re.IGNORECASE)
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:disambig|hndis|geodis|disambiguation)", re.IGNORECASE)
_GONE = (
    "ref|references|gallery|math|chem|timeline|score|imagemap|graph|templatestyles|mapframe|maplink|ce|hiero|inputbox"
    "|categorytree"
)
_ELEMENT = re.compile(rf"<(/?)({_GONE})\b([^<>]*)>", re.IGNORECASE)
_MARK = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ \t:*#]*\{\||^[ \t]*\|\}(?!\})", re.MULTILINE)
_CLOSES = {"}}": "{{", "]]": "[[", "|}": "{|"}
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\[\]]+[ \t]*([^\[\]\n]*)\]|\[mailto:[^\s\[\]]+[ \t]*([^\[\]\n]*)\]")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_QUOTES = re.compile(r"'{2,}")
_SWITCH = re.compile(r"__[A-Z]+__")
_LIST = re.compile(r"^[*#:;]+[ \t]*")
_NAMESPACE = re.compile(r"[a-z][a-z-]{1,15}", re.IGNORECASE)
_SPACED = {
    "nbsp": " ",
    "spaces": " ",
    "snd": " – ",
    "spnd": " – ",
    "ndash": "–",
    "mdash": "—",
    "'": "'",
    "!": "|",
    "=": "=",
}


def mediawiki_files(source: Source, notices: Counter[str]) -> list[File]:
    """Dumps."""
    return files_of(source, DUMPS, notices)


def mediawiki_parts(source: Source, notices: Counter[str]) -> list[Part]:
    """Files, gathered; large wikis are published in many."""
    return gathered(mediawiki_files(source, notices))


def read_mediawiki(reading: Reading, part: Part) -> Iterator[Document]:
    """One document for each article, named after its page number; redirects, disambiguations and other namespaces are
    counted."""
    for file in part.files:
        count = 0
        try:
            for page in _pages(file):
                count += 1
                if reason := page.pop("reason", ""):
                    reading.notices[f"ignored: {reason}"] += 1
                else:
                    meta = {"title": page["title"]}
                    yield reading.document(page["id"] or f"{file.name}:{count}", plain_text(page["text"]), meta=meta)
        except (EOFError, ElementTree.ParseError) as error:
            message = f"{file.path}: {error}; readable up to page {count}; fetch the dump again"
            reading.damaged("rest of a damaged dump", InputError(message))
        except OSError as error:
            raise unreadable(file.path, error) from error


def _pages(file: File) -> Iterator[dict[str, str]]:
    """{title, id, text} or {…, reason to pass it over} of each page. Memory holds one page."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(("start", "end"))
    root: ElementTree.Element | None = None
    held = depth = 0
    for block in _slices(file):
        held += len(block)
        parser.feed(block)
        for event, element in cast(Iterator[tuple[str, ElementTree.Element]], parser.read_events()):
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            if depth > DEEPEST:
                raise EOFError("elements nested too deeply")
            if event == "end" and _local(element) == "page":
                yield _page(element)
                root.clear()
                held = 0
        if held > LARGEST_PAGE:
            raise EOFError(f"a page or preamble longer than {LARGEST_PAGE >> 20} MiB")
    parser.close()


def _slices(file: File) -> Iterator[bytes]:
    """The dump in pieces that make few elements at a time, however far a packed block unfolds."""
    for block in blocks_of(file.path):
        for start in range(0, len(block), _SLICE):
            yield block[start : start + _SLICE]


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _page(element: ElementTree.Element) -> dict[str, str]:
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


# Wikitext


def plain_text(wikitext: str) -> str:
    """What a reader sees of an article's running text: paragraphs, headings, list items. Never raises."""
    text = _without_elements(_without_comments(wikitext))
    text = _EXTERNAL.sub(lambda found: found[1] or found[2] or "", _unnested(text))
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = html.unescape(_SWITCH.sub("", _QUOTES.sub("", text))).replace("\xa0", " ")
    return "\n".join(_lines(text)).strip("\n")


def _without_comments(text: str) -> str:
    pieces, place = [], 0
    while (start := text.find("<!--", place)) >= 0:
        pieces.append(text[place:start])
        end = text.find("-->", start + 4)
        if end < 0:
            return "".join(pieces)
        place = end + 3
    return "".join([*pieces, text[place:]])


def _without_elements(text: str) -> str:
    """Without references, formulas, galleries and such, contents and all; an element that is never closed loses its tag
    only."""
    last_close = {found[2].lower(): found.start() for found in _ELEMENT.finditer(text) if found[1]}
    pieces, place, inside = [], 0, ""
    for found in _ELEMENT.finditer(text):
        name = found[2].lower()
        if inside:
            if found[1] and name == inside:
                inside, place = "", found.end()
            continue
        pieces.append(text[place : found.start()])
        place = found.end()
        if not found[1] and not found[3].endswith("/") and last_close.get(name, -1) > found.start():
            inside = name
    return "".join([*pieces, text[place:]])


def _unnested(text: str) -> str:
    """Templates and tables gone (but for those that stand for words), links replaced by what they show."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    place = 0
    for found in _MARK.finditer(text):
        stack[-1][1].append(text[place : found.start()])
        place = found.end()
        mark = found[0].strip(" \t:*#")
        if mark in ("{{", "[[", "{|"):
            if len(stack) <= DEEPEST:
                stack.append((mark, []))
        elif any(kind == _CLOSES[mark] for kind, _ in stack):
            while stack[-1][0] != _CLOSES[mark]:  # opened inside and never closed: its text stands
                stack[-2][1].extend(stack.pop()[1])
            kind, pieces = stack.pop()
            stack[-1][1].append(_shown(kind, "".join(pieces)))
    return "".join([piece for _, pieces in stack for piece in pieces] + [text[place:]])


def _shown(kind: str, content: str) -> str:
    if kind == "{|":
        return ""
    parts = content.split("|")
    name = parts[0].strip().lower()
    if kind == "[[":
        prefix, colon, _ = name.partition(":")
        if colon and prefix and _NAMESPACE.fullmatch(prefix):  # File:, Category:, de:, …
            return ""
        return parts[-1].lstrip(":").strip("\n") or parts[0]
    if name in _SPACED:
        return _SPACED[name]
    if name in ("lang", "nowrap", "small", "em", "strong", "abbr", "transl") or name.startswith("lang-"):
        plain = [part for part in parts[1:] if "=" not in part]
        return (plain[0] if name == "abbr" else plain[-1]) if plain else ""
    if name in ("convert", "cvt") and len(parts) > 2:
        return f"{parts[1].strip()} {parts[2].strip()}"
    return ""


def _lines(text: str) -> Iterator[str]:
    """Lines with headings and list items bare; a heading that nothing follows, and runs of blank lines, are left
    out."""
    heading, blank = "", True
    for line in text.split("\n"):
        line = line.strip()
        if len(line) > 2 and line[0] == line[-1] == "=":
            heading = line.strip("= \t")
        elif line := _LIST.sub("- " if line.startswith("*") else "", line):
            if heading:
                yield from (heading, "") if blank else ("", heading, "")
                heading = ""
            yield " ".join(line.split())
            blank = False
        elif not blank and not heading:
            yield ""
            blank = True
