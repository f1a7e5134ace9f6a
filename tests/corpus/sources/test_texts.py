"""Folders of texts and this Python's own library: what a suffix decides, how files are decoded and cut."""

import gzip
import sys
from collections import Counter
from pathlib import Path

import pytest

from lmforge.corpus.sources import texts
from lmforge.corpus.sources.kinds import expected_bytes, iter_documents, parts
from lmforge.corpus.sources.texts import CUT_ABOVE, PIECE
from lmforge.recipe import Source
from tests.corpus.sources.reading import read, read_in_parts, refusal


def test_suffixes_are_of_one_kind_each() -> None:
    assert not texts.PROSE & texts.CODE
    assert not texts.MARKUP & (texts.PROSE | texts.CODE)


def test_a_giant_source_file_is_data_and_a_giant_text_is_not(tmp_path: Path) -> None:
    for name in ("a.py", "a.txt"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"x = 1\n" * (texts.LARGEST_CODE // 6 + 1))
    notices: Counter[str] = Counter()
    documents = iter_documents(Source(kind="folder", path=tmp_path), notices)
    assert next(documents)["id"] == "a.txt#1"
    assert notices == {"ignored: source file beyond 64 MiB": 1}


def test_packed_texts_are_cut_like_plain_ones(tmp_path: Path) -> None:
    text = "".join(
        f"Line {number} of a long text that goes on.\n{chr(10) if number % 9 == 0 else ''}" for number in range(9000)
    )
    pieces = []
    for folder, name, data in (
        ("plain", "a.txt", text.encode()),
        ("packed", "a.txt.gz", gzip.compress(text.encode(), mtime=0)),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(data)
        pieces.append([document["text"] for document in iter_documents(Source(kind="folder", path=tmp_path / folder))])
    assert pieces[0] == pieces[1]
    assert len(pieces[0]) > 2
    assert "".join(pieces[0]) == text


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


def test_the_library_in_parts_is_the_library() -> None:
    source = Source(kind="python-library")
    assert [document["id"] for document in read_in_parts(source)] == [
        document["id"] for document in iter_documents(source)
    ]
    assert len(parts(source)) > 4
