"""Texts: what a suffix decides; the rest is in test_sources."""

import gzip
from collections import Counter
from pathlib import Path

from lmforge.corpus.sources import texts
from lmforge.corpus.sources.kinds import iter_documents
from lmforge.recipe import Source


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
