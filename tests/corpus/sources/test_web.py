"""Web pages: main content kept, archives read record by record, and no page or archive, however built, hangs or ends
the run."""

import bz2
import gzip
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources import files, web
from lmforge.corpus.sources.charsets import decoded
from lmforge.corpus.sources.document import Document
from lmforge.corpus.sources.encodings import NotText
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.corpus.sources.web import DEEPEST, LARGEST_PAGE, Unfit, page_text
from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind

BODY = (
    "The forge was hot and the smith was tired, but the work had to be done before the night fell over the village. "
    * 4
)
PAGE = (
    "<html><head><title>A  day</title><script>var x = 1;</script></head><body><nav><a href=/>Home</a></nav>"
    f"<article><h1>A day at the forge</h1><p>{BODY}</p><p>Then he slept.</p></article>"
    "<div class='related-posts'><p>You may like these other posts about "
    "hammers.</p></div><footer>Imprint</footer></body></html>"
)


def warc(pages: list[tuple[int, str, bytes]], kind: str = "response") -> bytes:
    """A WARC file of HTTP responses (status, content type, body), or of extracted texts (kind "conversion")."""
    records = []
    for number, (status, content_type, body) in enumerate(pages):
        block = (
            body
            if kind == "conversion"
            else b"HTTP/1.1 %d X\r\nContent-Type: %s\r\n\r\n" % (status, content_type.encode()) + body
        )
        media = "text/plain" if kind == "conversion" else "application/http; msgtype=response"
        records.append(
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:0000-{number}>\r\nWARC-Target-URI: "
            f"http://example.org/{number}\r\n"
            f"Content-Type: {media}\r\nContent-Length: {len(block)}\r\n\r\n".encode()
            + block
            + b"\r\n\r\n"
        )
    return b"".join(records)


def read(kind: SourceKind, path: Path, **more: str) -> tuple[list[Document], Counter[str]]:
    notices: Counter[str] = Counter()
    return list(iter_documents(Source(kind=kind, path=path, **more), notices)), notices  # type: ignore[arg-type]


def test_main_content_and_title() -> None:
    text, title = page_text(PAGE)
    assert title == "A day"
    assert text.startswith("A day at the forge")
    assert text.endswith("Then he slept.")
    assert "var x" not in text


def test_a_page_whose_class_names_mislead_keeps_its_text() -> None:
    assert "The forge was hot" in page_text(f"<body><div class='shared-layout'><p>{BODY}</p></div></body>")[0]


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "utf-16", "ibm866", "nonsense", ""]))
@settings(deadline=None)
def test_any_bytes_are_a_page_or_unfit(data: bytes, charset: str | None) -> None:
    try:
        html = decoded(data, charset)
    except NotText:
        return
    text, title = page_text(html)  # so small a page is never unfit
    assert "\0" not in title
    assert text == text.strip()


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<div>" * 1_000_000, "page beyond 4 MiB"),
        ("<b>" * 1_000_000, "page nested too deeply"),
        ("<div></x>" * 400_000, "page nested too deeply"),
        ("<div><!--</div>-->" * 100_000, "page nested too deeply"),
        ("<li><dd>" * 100_000, "page nested too deeply"),
        ("<svg><g>" * 100_000, "page nested too deeply"),
        (
            "<div " + " ".join(f"a{number}=1" for number in range(20_000)) + ">x</div>",
            ("page with a tag of too many attributes"),
        ),
    ],
)
def test_pages_that_would_take_minutes_are_unfit_at_once(html: str, reason: str) -> None:
    with pytest.raises(Unfit, match=reason):  # quadratic work would not end
        page_text(html)


def test_pages_at_the_bounds_are_read() -> None:
    deep = DEEPEST - 10
    assert "hot" in page_text("<div>" * deep + f"<p>{BODY}</p>" + "</div>" * deep)[0]
    for html in ("<p>x" * 100_000, "<b><p>" * 1000, "<" * 1_000_000, "a\0b" * 100_000, "<a " * 300_000):
        page_text(html)


def test_packed_pages_and_what_is_cut(tmp_path: Path) -> None:
    data = gzip.compress(PAGE.encode())
    (tmp_path / "a.html.gz").write_bytes(data)
    (tmp_path / "b.html").write_bytes(data)  # as a browser's cache has it
    (tmp_path / "c.htm.gz").write_bytes(data[:-30])
    notices = Counter[str]()
    documents = list(iter_documents(Source(kind="html", path=tmp_path), notices))
    assert [document["id"] for document in documents] == ["a.html.gz", "b.html"]
    assert len({document["text"] for document in documents}) == 1
    assert notices == {"skipped: damaged or truncated page": 1}


def test_html_folder(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE)
    (tmp_path / "b.htm").write_bytes(f"<meta charset=latin-1><p>é {BODY}</p>".encode("latin-1"))
    (tmp_path / "c.html").write_text("<html></html>")
    (tmp_path / "d.html").write_text("<b>" * 1_000_000)
    (tmp_path / "e.html").write_bytes(bytes(LARGEST_PAGE + 5))
    (tmp_path / "f.html").write_bytes(b"\0" * 1000)
    documents, notices = read("html", tmp_path)
    assert [(document["id"], document["genre"]) for document in documents] == [("a.html", "web"), ("b.htm", "web")]
    assert documents[0]["meta"] == {"title": "A day"}
    assert documents[1]["text"].startswith("é The forge")
    assert notices == {
        "ignored: page without main content": 2,
        "skipped: page nested too deeply": 1,
        "skipped: page beyond 4 MiB": 1,
    }
    with pytest.raises(InputError, match=r"d\.html: page nested too deeply; leave it out"):
        read("html", tmp_path, damaged="refuse")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
def test_warc_records(tmp_path: Path, suffix: str) -> None:
    pages = [
        (200, "text/html; charset=utf-8", PAGE.encode()),
        (404, "text/html", b"gone"),
        (200, "image/png", b"\x89PNG"),
        (200, "text/plain", b"plain words"),
        (200, "text/html", f"<p>é {BODY}</p>".encode("latin-1")),
        (200, "text/html", b""),
    ]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress}[suffix]
    path = tmp_path / f"a.warc{suffix}"
    path.write_bytes(pack(warc(pages)))
    documents, notices = read("warc", path)
    assert [document["id"] for document in documents] == ["0000-0", "0000-3", "0000-4"]
    assert documents[0]["meta"]["url"] == "http://example.org/0"
    assert documents[1]["text"] == "plain words"
    assert documents[2]["text"].startswith("é")
    assert notices == {
        "ignored: page whose status is not 200": 1,
        "ignored: response that is no page": 1,
        "ignored: page without main content": 1,
    }


def test_a_page_in_segments_is_no_whole_page(tmp_path: Path) -> None:
    """WARC 1.1, section 7: the first segment says its number, the others are continuations; revisits hold no page."""
    html = (200, "text/html", PAGE.encode())
    first = warc([html]).replace(b"WARC-Type", b"WARC-Segment-Number: 1\r\nWARC-Type")
    others = warc([html], "continuation") + warc([html], "revisit")
    (tmp_path / "a.warc").write_bytes(first + others + warc([html]))
    documents, notices = read("warc", tmp_path / "a.warc")
    assert len(documents) == 1
    assert notices == {
        "skipped: record in segments": 1, "ignored: continuation record": 1, "ignored: revisit record": 1
    }  # fmt: skip


def test_wet_is_text_already(tmp_path: Path) -> None:
    path = tmp_path / "a.wet.gz"
    path.write_bytes(gzip.compress(warc([(0, "", "Überall Text.\nZwei Zeilen.".encode())], "conversion")))
    [document] = read("warc", path)[0]
    assert document["text"] == "Überall Text.\nZwei Zeilen."


def damaged_archives() -> dict[str, bytes]:
    whole = warc([(200, "text/html", PAGE.replace("forge", f"forge {number}").encode()) for number in range(20)])
    packed = b"".join(gzip.compress(piece) for piece in (whole[: len(whole) // 3], whole[len(whole) // 3 :]))
    return {
        "half.warc": whole[: len(whole) // 2],
        "half.warc.gz": packed[: len(packed) // 2],
        "middle.warc.gz": packed[:200] + bytes(50) + packed[250:],
        "half.warc.zst": zstandard.compress(whole)[:-40],
        "words.warc": b"hello world " * 1000,
        "nul.warc": bytes(10_000),
        "named.warc.gz": b"not gzip",
        "length.warc": whole.replace(b"Content-Length: ", b"Content-Length: 9999999", 3),
        "huge.warc": b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        "negative.warc": b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: -5\r\n\r\nx",
    }


@pytest.mark.parametrize("name", damaged_archives())
def test_damaged_archives_are_skipped_and_counted_or_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(damaged_archives()[name])
    (tmp_path / "z.warc").write_bytes(warc([(200, "text/html", PAGE.encode())]))
    documents, notices = read("warc", tmp_path)
    assert documents[-1]["text"].endswith("Then he slept.")  # the run goes on
    assert notices["skipped: damaged record of an archive"] >= 1
    with pytest.raises(InputError) as caught:
        read("warc", tmp_path / name, damaged="refuse")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert "readable up to record" in message
    assert "\n" not in message


@given(st.integers(0, 3000), st.binary(min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_any_bytes_changed_end_no_run(tmp_path_factory: pytest.TempPathFactory, place: int, noise: bytes) -> None:
    whole = warc([(200, "text/html", PAGE.encode()) for _ in range(3)])
    path = tmp_path_factory.mktemp("noise") / "a.warc"
    path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    documents, _ = read("warc", path)
    assert len(documents) <= 3


@pytest.mark.parametrize("size", [200, 1000, 5000])
def test_a_large_archive_is_read_in_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    pages = [
        warc([(200, "text/html", PAGE.replace("forge", f"forge {number} {'iron ' * (number * 7)}").encode())])
        for number in range(30)
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(map(gzip.compress, pages)))
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(b"".join(pages)))  # one member: read whole by the first range
    whole = [document["text"] for document in read("warc", tmp_path)[0]]
    monkeypatch.setattr(web, "SPLIT_ABOVE", size)
    monkeypatch.setattr(files, "SPLIT_ABOVE", size)
    assert len(web.warc_parts(Source(kind="warc", path=tmp_path), Counter())) > 2
    documents, notices = read("warc", tmp_path)
    assert [document["text"] for document in documents] == whole
    assert len(whole) == 60
    assert not any("skipped" in notice for notice in notices)
    data = bytearray((tmp_path / "a.warc.gz").read_bytes())
    data[-300:-200] = bytes(100)
    (tmp_path / "a.warc.gz").write_bytes(data)
    documents, notices = read("warc", tmp_path / "a.warc.gz")
    assert 20 < len(documents) < 30
    assert notices["skipped: damaged record of an archive"] >= 1
