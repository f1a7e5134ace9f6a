"""Sources: what each kind yields, and one exact line for each kind of bad input."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmforge.corpus.sources import files
from lmforge.corpus.sources.kinds import fingerprint, iter_documents, parts
from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind
from tests.corpus.sources.reading import lines, read_in_parts, refusal


def test_the_default_fingerprint_reads_no_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(Source(kind="python-library"))
    opened: list[Path] = []
    monkeypatch.setattr(Path, "open", lambda self, *_: opened.append(self))
    assert fingerprint(Source(kind="python-library")) == first
    assert not opened


def test_empty_and_missing_are_refused(tmp_path: Path) -> None:
    assert refusal("folder", tmp_path).startswith(f"{tmp_path}: no folder files in it (it is empty)")
    (tmp_path / "x.png").touch()
    assert refusal("folder", tmp_path).startswith(f"{tmp_path}: no folder files in it (1 ignored: .png)")
    assert refusal("jsonl", tmp_path).startswith(f"{tmp_path}: no jsonl files in it")
    for kind in ("folder", "jsonl", "parquet"):
        assert refusal(kind, tmp_path / "gone").startswith(f"{tmp_path / 'gone'}: does not exist")  # type: ignore[arg-type]
    assert refusal("jsonl", tmp_path / "*.jsonl").startswith(f"{tmp_path / '*.jsonl'}: no file matches this pattern")
    with pytest.raises(InputError, match="does not exist"):
        fingerprint(Source(kind="folder", path=tmp_path / "gone"))


def test_no_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By way of the calls themselves, since root may read everything."""
    text = tmp_path / "a.txt"
    text.write_text("fine")
    opened = Path.open

    def forbid(self: Path, *args: object, **more: object) -> object:
        if self == text:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **more)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbid)
        assert refusal("folder", tmp_path).startswith(f"{text}: no permission to read it")
        assert refusal("jsonl", text).startswith(f"{text}: no permission to read it")

    def closed(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", closed)
    assert refusal("folder", tmp_path).startswith(f"{tmp_path}: no permission to read it")


# Fingerprint


def test_fingerprint_sees_content_changes_and_no_others(tmp_path: Path) -> None:
    source = Source(kind="folder", path=tmp_path)
    (tmp_path / "a.txt").write_text("one")
    first = fingerprint(source)
    (tmp_path / "a.png").write_text("never read")
    assert fingerprint(source) == first
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    second = fingerprint(source)
    assert second != first
    (tmp_path / "b.txt").write_text("two")
    assert fingerprint(source) not in (first, second)
    moved = tmp_path.parent / "moved"
    third = fingerprint(source)
    tmp_path.rename(moved)
    assert fingerprint(Source(kind="folder", path=moved)) == third


# Parts


def test_parts_gather_small_files_and_give_every_document_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"{number} " * (number * 7 + 1))
    source = Source(kind="folder", path=tmp_path)
    assert len(parts(source)) == 1
    monkeypatch.setattr(files, "PART_BYTES", 1000)
    pieces = parts(source)
    assert 10 < len(pieces) < 40
    assert pieces == parts(source)
    assert len({part.name for part in pieces}) == len(pieces)
    assert sum(part.bytes for part in pieces) == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert all(part.bytes <= 1000 or len(part.files) == 1 for part in pieces)
    assert read_in_parts(source) == list(iter_documents(source))
    assert [document["id"] for document in read_in_parts(source)] == [f"{number:02}.txt" for number in range(40)]


# Damage skipped


def test_damage_is_skipped_and_counted_where_the_source_says_so(tmp_path: Path) -> None:
    good, bad = b'{"text": "good"}\n', [b"[1]", b'{"text": 5}', b'{"text": "\xff"}', b'{"txt": ""}', b"[" * 100_000]
    (tmp_path / "a.jsonl").write_bytes(good + b"\n".join(bad) + b"\n" + good)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(2000))[:-9])
    (tmp_path / "c.jsonl").write_bytes(good)
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="jsonl", path=tmp_path, damaged="skip"), notices))
    assert notices == {"skipped: broken JSONL line": 5, "skipped: damaged part of a file": 1}
    assert [document["text"] for document in documents if not document["text"][0].isdigit()] == ["good"] * 3
    assert len(documents) > 500

    table = pyarrow.table({"text": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    notices.clear()
    assert len(list(iter_documents(Source(kind="parquet", path=tmp_path, damaged="skip"), notices))) == 2
    assert notices == {"ignored: .jsonl": 2, "ignored: .gz": 1, "skipped: truncated or damaged Parquet": 1}

    (tmp_path / "a.txt").write_bytes(b"a\0b")
    (tmp_path / "b.txt").write_text("fine")
    notices.clear()
    assert [
        document["id"] for document in iter_documents(Source(kind="folder", path=tmp_path, damaged="skip"), notices)
    ] == ["b.txt"]
    assert notices["skipped: binary data in a text file"] == 1


MEGABYTE = 1 << 20
READER = """
import json, resource, sys
from collections import Counter
from pathlib import Path
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.recipe import Source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
notices = Counter()
count = sum(1 for _ in iter_documents(Source(kind=sys.argv[1], path=Path(sys.argv[2]), damaged="skip"), notices))
print(json.dumps([count, dict(notices), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024]))
"""


def giant(path: Path, head: bytes, unit: bytes, tail: bytes, size: int = 1 << 30) -> Path:
    """A file of about a gigabyte, packed as its suffix says, whose middle is one unit over and over."""
    block = unit * (MEGABYTE // len(unit))
    if path.suffix == ".zst":
        with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as packed:
            packed.write(head)
            for _ in range(size // len(block)):
                packed.write(block)
            packed.write(tail)
        return path
    with gzip.open(path, "wb", 9 if len(unit) == 1 else 1) if path.suffix == ".gz" else path.open("wb") as plain:
        plain.write(head)
        for _ in range(size // len(block)):
            plain.write(block)
        plain.write(tail)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "head", "unit", "reason"),
    [
        ("jsonl", "a.jsonl", b'{"text": "', b"iron and steel ", "skipped: line longer than 64 MiB"),
        ("jsonl", "a.jsonl.gz", b'{"text": "', b"0", "skipped: damaged part of a file"),  # a thousandfold: a bomb
        ("jsonl", "a.jsonl.zst", b'{"text": "', b"0", "skipped: damaged part of a file"),
        ("folder", "a.rst", b"", b"iron and steel ", "ignored: source file beyond 64 MiB"),
        ("folder", "a.txt", b"", b"\0", "skipped: binary data in a text file"),
        ("code", "a.py", b"x = '", b"iron and steel ", "ignored: source file beyond 1 MiB"),
        ("html", "a.html", b"<p>", b"<div>", "skipped: page beyond 4 MiB"),
        ("mediawiki", "a.xml", b"<mediawiki><page><revision><text>", b"iron and steel ", (
            "skipped: damaged page of a dump"  # the page, and the dump that has no end
        )),
        ("warc", "a.warc", b"WARC/1.0\r\nWARC-Type: response\r\nX: ", b"iron and steel ", (
            "skipped: damaged record of an archive"
        )),
        ("warc", "a.warc.gz", b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 9999999999\r\n\r\n", b"0", (
            "skipped: damaged record of an archive"
        )),
    ],
)  # fmt: skip
def test_a_gigabyte_in_one_line_neither_hangs_nor_fills_memory(
    tmp_path: Path, kind: str, name: str, head: bytes, unit: bytes, reason: str
) -> None:
    path = giant(tmp_path / name, head, unit, b'"}\n{"text": "after"}\n')
    result = subprocess.run(
        [sys.executable, "-c", READER, kind, path], capture_output=True, text=True, timeout=200, check=True
    )
    count, notices, megabytes = json.loads(result.stdout)
    assert notices.get(reason) == (2 if kind == "mediawiki" else 1), notices
    assert megabytes < 400
    assert count == (1 if name == "a.jsonl" else 0)  # what follows the line is read


@pytest.mark.slow
def test_pages_without_end_are_counted_each_in_the_memory_of_one(tmp_path: Path) -> None:
    path = giant(tmp_path / "a.xml.gz", b"<mediawiki>", b"<page>", b"</mediawiki>", 32 << 20)
    result = subprocess.run(
        [sys.executable, "-c", READER, "mediawiki", path], capture_output=True, text=True, timeout=200, check=True
    )
    count, notices, megabytes = json.loads(result.stdout)
    assert (count, notices) == (0, {"skipped: damaged page of a dump": 32 * (MEGABYTE // 6)})
    assert megabytes < 100


def test_the_run_goes_on_past_damage_of_every_kind(tmp_path: Path) -> None:
    """One damaged and one sound file of each kind: the sound one is read, the damage counted."""
    good = "The old forge stood at the end of the village, where the road turned down to the river and the mill. " * 4
    line, table = json.dumps({"text": good}).encode() + b"\n", tmp_path / "parquet" / "b.parquet"
    revision = f"<id>1</id><revision><text>{good}</text></revision>"
    page = f"<mediawiki><page><title>A</title><ns>0</ns>{revision}</page></mediawiki>".encode()
    block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>{good}</p>".encode()
    record = (
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
        % (len(block), block)
    )
    cases: list[tuple[SourceKind, str, bytes, bytes]] = [
        ("folder", "txt", b"a\0b", good.encode()),
        ("jsonl", "jsonl.gz", gzip.compress(line * 50)[:-9], gzip.compress(line)),
        ("jsonl", "jsonl.zst", zstandard.compress(line * 50)[:-5], zstandard.compress(line)),
        ("jsonl", "jsonl", b"\xff\xfe\0{\n", line),
        ("mediawiki", "xml", page[:-20], page),
        ("warc", "warc.gz", gzip.compress(record * 3)[:-20], gzip.compress(record)),
        ("warc", "warc", b"\0" * 999, record),
        ("html", "html", b"<b>" * 500_000, f"<p>{good}</p>".encode()),
        ("code", "py", b"x = 1\0\n", b"x = 1 + 2\n"),
        ("hub", "jsonl", b'{"text": "x"}\n{broken\n', line),
    ]
    for kind, suffix, broken, sound in cases:
        folder = tmp_path / f"{kind}-{suffix}"
        folder.mkdir()
        (folder / f"a.{suffix}").write_bytes(broken)
        (folder / f"b.{suffix}").write_bytes(sound)
        notices: Counter[str] = Counter()
        documents = list(iter_documents(Source(kind=kind, path=folder, damaged="skip"), notices))
        assert any(document["text"].strip()[:9] in ("The old f", "x = 1 + 2") for document in documents), (kind, suffix)
        assert [count for name, count in notices.items() if name.startswith("skipped: ")] == [1], (
            kind,
            suffix,
            notices,
        )
    table.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": [good]}), table)
    (tmp_path / "parquet" / "a.parquet").write_bytes(table.read_bytes()[:-40])
    notices = Counter()
    assert len(list(iter_documents(Source(kind="parquet", path=tmp_path / "parquet", damaged="skip"), notices))) == 1
    assert notices["skipped: truncated or damaged Parquet"] == 1
