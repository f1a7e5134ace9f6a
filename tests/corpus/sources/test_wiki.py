"""MediaWiki: what a reader sees remains, dumps stream, and every step is linear in the length of the page."""

import bz2
import gzip
import time
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.sources import wiki
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.corpus.sources.wikitext import plain_text
from lmforge.errors import InputError
from lmforge.recipe import Source


@pytest.mark.parametrize(
    ("wikitext", "plain"),
    [
        ("'''Iron''' is a ''metal''.", "Iron is a metal."),
        ("a [[forge]] and an [[anvil|iron block]]s", "a forge and an iron blocks"),
        ("[[File:x.jpg|thumb|a [[caption]]]]Text.[[Category:Metals]][[de:Eisen]]", "Text."),
        ("[[:Category:Metals]] [[Star Wars: Episode IV]]", "Category:Metals Star Wars: Episode IV"),
        ("See [http://x.org the site], [https://y.org] or [mailto:a@b.c us].", "See the site, or us."),
        ("One<ref name=a>note [[x]]</ref> two<ref name=b /> three<!-- no -->.", "One two three."),
        (
            "{{Infobox|a={{b|c}}|d=[[e]]}}Text {{convert|5|km|mi}} {{lang|fr|liberté}}{{unknown|x|}}.",
            "Text 5 km liberté.",
        ),
        ("before\n{| class=x\n! a\n|-\n| b {{c|}} || d\n|}\nafter", "before\n\nafter"),
        ("a<br/>b <span style='x'>c</span> &amp; &nbsp;d __NOTOC__", "a\nb c & d"),
        ("* one\n** two\n# three\n: four", "- one\n- two\nthree\nfour"),
        ("Intro.\n== Kept ==\nText.\n== References ==\n{{reflist}}\n== See also ==\n", "Intro.\n\nKept\n\nText."),
        ("The sum <math>x^2 < y</math> holds.", "The sum holds."),
        ("unclosed {{template and [[link and <ref>note", "unclosed template and link and note"),
        ("stray }} and ]] and |} and -->", "stray and and |} and -->"),
        ("", ""),
    ],
)
def test_what_a_reader_sees(wikitext: str, plain: str) -> None:
    assert plain_text(wikitext) == plain


@given(st.text(st.sampled_from("ab|\n ={}[]<>!-/'#*:ref&;_"), max_size=200))
def test_any_wikitext_gives_lines_without_raising(wikitext: str) -> None:
    text = plain_text(wikitext)
    assert text == text.strip("\n")
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    "unit",
    [
        "{{",
        "[[a|",
        "<ref>",
        "<!--",
        "[http://",
        "'",
        "=",
        "{|\n",
        "}}",
        "{{[[}}",
        "<",
        "&",
        "_",
        "*",
        "[[[[]]",
        "<ref/>",
        "<math></math>",
    ],
)
def test_malformed_pages_take_no_longer_than_their_length(unit: str) -> None:
    start = time.perf_counter()
    plain_text(unit * (500_000 // len(unit)))
    assert time.perf_counter() - start < 3


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
