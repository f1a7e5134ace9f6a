"""Sources: what each kind yields, and one exact line for each kind of bad input."""

import gzip
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmforge.corpus.sources import files, records, texts
from lmforge.corpus.sources.kinds import Document, expected_bytes, fingerprint, iter_documents, parts, read_part
from lmforge.corpus.sources.texts import CUT_ABOVE, PIECE
from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind


def read(kind: SourceKind, path: Path, **more: str) -> list[Document]:
    return list(iter_documents(Source(kind=kind, path=path, **more)))  # type: ignore[arg-type]


def refusal(kind: SourceKind, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(kind, path)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # a mend follows the cause
    return message


def lines(count: int) -> bytes:
    """Records that do not compress to nothing, so that a cut file still holds some."""
    words = random.Random(1)
    return b"".join(json.dumps({"text": f"{n} {words.random()}"}).encode() + b"\n" for n in range(count))


# The library


def test_python_library_is_code_and_topics_and_nothing_installed() -> None:
    documents = list(iter_documents(Source(kind="python-library", genre="code")))
    assert sum(len(document["text"]) for document in documents) > 1_000_000
    by_id = {document["id"]: document for document in documents}
    assert len(by_id) == len(documents)
    assert by_id["json/decoder.py"]["genre"] == "code"
    assert by_id["pydoc_data.topics/assert"]["genre"] == "technical"
    assert "pydoc_data/topics.py" not in by_id  # its text is already there, topic by topic
    assert not any("site-packages" in name or "dist-packages" in name or "__pycache__" in name for name in by_id)


def test_python_library_without_tests_and_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "re.py").write_text("import sre\n")
    (tmp_path / "odd.py").write_bytes(b"# -*- coding: koi8-r -*-\nx = '\xf0\xd9\xd4\xc8\xcf\xce'\n")
    (tmp_path / "bad.py").write_bytes(b"x = '\xff\xfe\xfd'\n")
    monkeypatch.setattr(texts.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="python-library"), notices))
    assert [document["id"] for document in documents] == ["odd.py", "re.py"]
    assert "Пытхон" in documents[0]["text"]
    assert notices == {"ignored: not readable as text": 1, "missing: pydoc_data": 1}


def test_the_default_fingerprint_is_quick() -> None:
    source = Source(kind="python-library")
    first = fingerprint(source)
    start = time.perf_counter()
    assert fingerprint(source) == first
    assert time.perf_counter() - start < 2  # 0.15 s alone; room for a busy machine


# A folder


def test_folder_is_sorted_and_counts_what_it_ignores(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("no")
    (tmp_path / "b" / "two.py").write_text("x = 1\n")
    (tmp_path / "a.md").write_text("one")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="folder", path=tmp_path), notices))
    assert [(document["id"], document["genre"]) for document in documents] == [
        ("a.md", "unknown"),
        ("b/two.py", "code"),
    ]
    assert notices == {"ignored: .png": 1, "ignored: broken link": 1}
    assert expected_bytes(Source(kind="folder", path=tmp_path)) == 9


def test_folder_decodes_marks_and_falls_back(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes("naïve".encode("utf-8-sig"))
    (tmp_path / "2.txt").write_bytes("naïve".encode("utf-16"))
    (tmp_path / "3.txt").write_bytes("naïve".encode("utf-16-be").join([b"\xfe\xff", b""]))
    (tmp_path / "4.txt").write_bytes("naïve".encode("utf-32"))
    (tmp_path / "5.txt").write_bytes("naïve".encode("latin-1"))
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind="folder", path=tmp_path), notices))
    assert [document["text"] for document in documents] == ["naïve"] * 5
    assert [document["meta"] for document in documents] == [{}, {}, {}, {}, {"encoding": "cp1252"}]
    assert not notices


def test_large_prose_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraph = "A paragraph of a book, some ninety characters long, so that many are needed to fill it up.\n\n"
    book = tmp_path / "book.txt"
    book.write_text(paragraph * (3 * CUT_ABOVE // len(paragraph)))
    documents = read("folder", book)
    assert "".join(document["text"] for document in documents) == book.read_text()
    assert [document["id"] for document in documents] == [
        f"book.txt#{number}" for number in range(1, len(documents) + 1)
    ]
    assert all(document["text"].endswith("\n\n") for document in documents)
    assert all(PIECE <= len(document["text"]) < PIECE + 200 for document in documents[:-1])
    assert documents[4]["meta"] == {"part": 5}
    before = [document["text"] for document in documents[:-1]]
    with book.open("a") as file:
        file.write(paragraph * 5000)
    # growing changes no earlier part
    assert [document["text"] for document in read("folder", book)][: len(before)] == before
    unbroken = tmp_path / "unbroken.txt"
    unbroken.write_text("é" * CUT_ABOVE)
    assert [len(document["text"]) for document in read("folder", unbroken)] == [2 * PIECE, 2 * PIECE]


def test_binary_among_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    bad = tmp_path / "b.txt"
    bad.write_bytes(b"abc\0def")
    assert refusal("folder", tmp_path).startswith(f"{bad}: binary data in a text file (a NUL byte at byte 3)")
    bad.write_bytes(bytes(range(1, 256)) * 4)
    assert refusal("folder", tmp_path).startswith(f"{bad}: binary data in a text file (not UTF-8, and ")
    bad.write_bytes(b"\xff\xfea\x00b")
    assert refusal("folder", tmp_path).startswith(
        f"{bad}: binary data in a text file (starts with a utf-16 byte-order mark"
    )


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


# JSONL


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_packed_give_the_same(tmp_path: Path, suffix: str) -> None:
    first = {"text": "one", "id": 7, "url": "u", "long": "x" * 999}
    records = [first, {"text": "two", "genre": "news", "meta": {"k": 1}}, {"text": None}]
    data = b"\xef\xbb\xbf" + b"\n\n".join(json.dumps(record).encode() for record in records)
    half = len(data) // 2  # two members or frames, as parallel compressors write
    pack = {"": lambda piece: piece, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(data[:half]) + pack(data[half:]))
    for place in (path, tmp_path, tmp_path / "*.jsonl*"):
        documents = [
            (document["id"], document["text"], document["genre"], document["meta"]) for document in read("jsonl", place)
        ]
        assert documents == [
            ("7", "one", "unknown", {"columns": {"url": "u"}}),
            (f"{path.name}:3", "two", "unknown", {"columns": {"genre": "news", "meta": {"k": 1}}}),
            (f"{path.name}:5", "", "unknown", {}),
        ]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"text": "a"', "not valid JSON (Expecting ',' delimiter at column 13)"),
        (b'{"txet": "a", "title": "b"}', "no field 'text'; did you mean 'txet'?"),
        (b'{"text": 5}', "field 'text' is a int, not a string"),
        (b'["text"]', 'a list, not an object like {"text": …}'),
        (b'{"text": "\xff"}', "not UTF-8 (at byte 11 of the line)"),
        (b"[" * 100_000, "not valid JSON (nested too deeply"),
    ],
)
def test_broken_jsonl_names_file_and_line(tmp_path: Path, line: bytes, cause: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "good"}\n')
    assert refusal("jsonl", path).startswith(f"{path}:3: {cause}")


@pytest.mark.parametrize(("suffix", "kind"), [(".gz", "gzip"), (".zst", "Zstandard")])
def test_truncated_and_damaged_archives_say_how_far(tmp_path: Path, suffix: str, kind: str) -> None:
    data = lines(20_000)
    packed = gzip.compress(data) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    message = refusal("jsonl", path)
    assert message.startswith(f"{path}: truncated {kind} file; readable up to line ")
    reached = int(message.split("up to line ")[1].split()[0])
    assert 1000 < reached < 19_000
    path.write_bytes(packed[:-2])
    assert f"{path}: truncated {kind} file; readable up to line" in refusal("jsonl", path)
    damaged = bytearray(packed)
    damaged[-6 if suffix == ".gz" else -2] ^= 0xFF  # the checksum at the end: the text itself still decodes
    path.write_bytes(damaged)
    assert refusal("jsonl", path).startswith(f"{path}: damaged {kind} data (")
    path.write_bytes(data)
    assert refusal("jsonl", path).startswith(f"{path}: not a {suffix} file, whatever its name says")


# Parquet


def test_parquet_rows_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number} {random.Random(number).random()}" for number in range(3000)]
    table = pyarrow.table({"text": texts, "id": [f"i{number}" for number in range(3000)], "nested": [[1]] * 3000})
    pyarrow.parquet.write_table(table, path, row_group_size=500)
    documents = read("parquet", tmp_path)
    assert [document["text"] for document in documents] == texts
    assert (documents[9]["id"], documents[9]["meta"]) == ("i9", {})
    assert read("parquet", path, text_field="id")[2]["text"] == "i2"
    with pytest.raises(InputError) as caught:
        read("parquet", path, text_field="txt")
    assert str(caught.value).startswith(f"{path}: no column 'txt'; did you mean 'text'?")
    with pytest.raises(InputError) as caught:
        read("parquet", path, text_field="nested")
    assert str(caught.value).startswith(f"{path}: column 'nested' holds list<")

    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert refusal("parquet", path).startswith(f"{path}: truncated, damaged or not Parquet (")
    path.write_bytes(b"no table at all")
    assert refusal("parquet", path).startswith(f"{path}: truncated, damaged or not Parquet (")
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    message = refusal("parquet", path)
    assert "readable up to row " in message
    assert "readable up to row 0;" not in message


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


def read_in_parts(source: Source) -> list[Document]:
    """Each part on its own, as another process would: through pickle, in any order."""
    pieces = [pickle.loads(pickle.dumps(part)) for part in parts(source)]
    by_part = {number: list(read_part(source, piece)) for number, piece in reversed(list(enumerate(pieces)))}
    return [document for number in sorted(by_part) for document in by_part[number]]


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


def test_the_library_in_parts_is_the_library() -> None:
    source = Source(kind="python-library")
    assert [document["id"] for document in read_in_parts(source)] == [
        document["id"] for document in iter_documents(source)
    ]
    assert len(parts(source)) > 4


@pytest.mark.parametrize("size", [7, 64, 100, 1000])
def test_a_large_jsonl_is_read_in_byte_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(50) + b"\n\n" + lines(3).rstrip(b"\n"))
    source = Source(kind="jsonl", path=path)
    whole = [document["text"] for document in iter_documents(source)]
    for module in (files, records):
        monkeypatch.setattr(module, "SPLIT_ABOVE", size)
    assert len(parts(source)) == -(-path.stat().st_size // size)
    documents = read_in_parts(source)
    assert [document["text"] for document in documents] == whole
    assert len({document["id"] for document in documents}) == len(documents)
    with path.open("ab") as file:
        file.write(b"\nbroken\n")
    assert refusal("jsonl", path).startswith(f"{path}:56: not valid JSON")


def test_a_large_parquet_is_read_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"{number} {'x' * 50}" for number in range(1000)]}), path, row_group_size=100
    )
    source = Source(kind="parquet", path=path)
    whole = list(iter_documents(source))
    for module in (files, records):
        monkeypatch.setattr(module, "SPLIT_ABOVE", 1000)
    assert len(parts(source)) == 10
    assert read_in_parts(source) == whole
    path.write_bytes(path.read_bytes()[:-9])
    assert "truncated, damaged or not Parquet" in refusal("parquet", path)


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
            "skipped: damaged page of a dump"
        )),
        ("mediawiki", "a.xml.gz", b"<mediawiki>", b"<page>", "skipped: damaged page of a dump"),
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
    assert notices.get(reason) == 1, notices
    assert megabytes < 400
    assert count == (1 if name == "a.jsonl" else 0)  # what follows the line is read


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
