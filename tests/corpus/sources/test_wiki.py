"""MediaWiki: what a reader sees remains, dumps stream, and every step is linear in the length of the page."""

import bz2
import gzip
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from lmforge.corpus.sources import wiki
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.errors import InputError
from lmforge.recipe import Source


def page(title: str, text: str, number: int = 1, more: str = "", namespace: int = 0) -> str:
    return (
        f"<page><title>{escape(title)}</title><ns>{namespace}</ns><id>{number}</id>{more}<revision><id>9</id>"
        f"<text bytes='1'>{escape(text)}</text></revision></page>"
    )


def dump(*pages: str) -> bytes:
    head = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><sitename>W</sitename></siteinfo>'
    return (head + "\n".join(pages) + "</mediawiki>").encode()


PAGES = (
    page("Iron", "'''Iron''' is a [[metal]]. é", 7),
    page("Talk:Iron", "x", 8, namespace=1),
    page("Fe", "#REDIRECT [[Iron]]", 9),
    page("Ferrum", "x", 10, '<redirect title="Iron"/>'),
    page("Irons", "Irons may be\n{{disambiguation}}", 11),
    page("Steel", "Steel & more", 12),
)


@pytest.mark.parametrize("suffix", ["", ".bz2", ".gz"])
def test_a_dump_gives_its_articles(tmp_path: Path, suffix: str) -> None:
    data = dump(*PAGES)
    half = len(data) // 2
    pack = {"": bytes, ".bz2": lambda piece: bz2.compress(piece), ".gz": gzip.compress}[suffix]
    path = tmp_path / f"wiki.xml{suffix}"
    path.write_bytes(pack(data[:half]) + pack(data[half:]))  # multistream, as dumps are published
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="mediawiki", path=path), notices))
    assert [(document["id"], document["text"], document["meta"]["title"]) for document in documents] == [
        ("7", "Iron is a metal. é", "Iron"),
        ("12", "Steel & more", "Steel"),
    ]
    assert documents[0]["genre"] == "encyclopedia"
    assert notices == {
        "ignored: page outside the article namespace": 1,
        "ignored: redirect": 2,
        "ignored: disambiguation page": 1,
    }


ENTITIES = b"".join(b'<!ENTITY %c "%s">' % (98 + depth, b"&%c;" % (97 + depth) * 10) for depth in range(12))
BOMB = b'<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">' + ENTITIES + b"]><mediawiki><page><title>&m;</title></page></mediawiki>"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (dump(*PAGES)[:-60], "ends within a page"),
        (bz2.compress(dump(*PAGES * 50))[:-20], ("truncated bzip2 file")),
        (dump(*PAGES).replace(b"</revision>", b"</revisoin>", 1), "mismatched tag"),
        (bytes(1000), "no dump"),
        (b"", "no dump"),
        (b"hello", "no dump"),
        (dump(*PAGES).replace("é".encode(), b"\xff"), "not well-formed"),
        (BOMB, "undefined entity"),
        (b"<mediawiki>" + b"<page>" * 1_000_000, "a page without its end"),
        (dump(PAGES[0].replace("é", "<b>" * 99 + "</b>" * 99)), "nested too deeply"),
    ],
)
def test_damaged_dumps_are_refused_or_skipped(tmp_path: Path, data: bytes, cause: str) -> None:
    path = tmp_path / "wiki.xml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"({cause}).*; readable up to page [0-9]+; fetch the dump again"):
        list(iter_documents(Source(kind="mediawiki", path=path)))
    notices: Counter[str] = Counter()
    list(iter_documents(Source(kind="mediawiki", path=path, damaged="skip"), notices))
    assert notices["skipped: damaged page of a dump"] >= 1


def test_a_giant_page_is_damage_and_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiki, "LARGEST_PAGE", 2 << 20)
    path = tmp_path / "wiki.xml"
    path.write_bytes(dump(PAGES[0], page("Giant", "x" * (5 << 20))))
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="mediawiki", path=path, damaged="skip"), notices))
    assert [document["id"] for document in documents] == ["7"]
    assert notices == {"skipped: damaged page of a dump": 1}


def test_pages_with_attributes_are_pages_and_a_disambiguation_has_many_names(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    data = dump(*PAGES, page("Бор", "{{неоднозначность}}", 13)).replace(b"<page>", b'<page lang="en">')
    path.write_bytes(data)
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="mediawiki", path=path), notices))
    assert [document["meta"]["title"] for document in documents] == ["Iron", "Steel"]
    assert notices["ignored: disambiguation page"] == 2
