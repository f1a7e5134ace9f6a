"""Lines of files in UTF-16 and UTF-32: read as what they are, with the encoding stated."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lmforge.corpus.labelled import read_examples
from lmforge.corpus.sources import files, records
from lmforge.corpus.sources.decode import lines_of
from lmforge.corpus.sources.document import Encodings
from lmforge.corpus.sources.kinds import iter_documents, parts, read_part
from lmforge.corpus.sources.wide import wide_encoding
from lmforge.recipe import Finetune, Source

TEXTS = ["naïve café", "日本語の文", "Привет мир", "😀 one", "Ċ Ā ĊĀ", "a\r\nb\u2028c", ""] * 30
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in TEXTS)
MARKS = {
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress], ids=["plain", "gz", "bz2"])
@pytest.mark.parametrize("mark", [True, False], ids=["mark", "none"])
@pytest.mark.parametrize("name", MARKS)
def test_every_line_is_read_and_the_encoding_stated(
    name: str, mark: bool, packed: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    suffix = {"compress": f".{packed.__module__.removesuffix('ip').rstrip('2')}"}.get(packed.__name__, "")
    suffix = {".gz": ".gz", ".bz": ".bz2"}.get(suffix, "")
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(packed(MARKS[name] * mark + LINES.encode(name)))
    encodings, notices = Encodings(), Counter[str]()
    source = Source(kind="jsonl", path=path, damaged="skip")
    documents = [d for part in parts(source) for d in read_part(source, part, notices, encodings)]
    assert [document["text"] for document in documents] == TEXTS
    assert not notices
    assert encodings.state() == {name[:6]: {"files": 1, "named": [path.name]}}


def test_members_of_any_size_and_files_that_were_joined(tmp_path: Path) -> None:
    data = MARKS["utf-16-le"] + LINES.encode("utf-16-le")
    for cut in (1, 2, 3, 5, 1000, len(data)):
        pieces = [data[:cut], data[cut : cut + 7], data[cut + 7 :], data]
        (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, pieces)))
        source = Source(kind="jsonl", path=tmp_path / "a.jsonl.gz")
        assert [document["text"] for document in iter_documents(source)] == TEXTS * 2


def test_a_large_file_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.encode("utf-16"))
    for module in (files, records):
        monkeypatch.setattr(module, "SPLIT_ABOVE", 500)
    source = Source(kind="jsonl", path=tmp_path)
    assert len(parts(source)) == 1
    assert len(list(iter_documents(source))) == len(TEXTS)


def test_what_is_cut_or_broken_is_one_line_counted(tmp_path: Path) -> None:
    record = json.dumps({"text": "one"})
    broken = f"{record}\n".encode("utf-16") + b"\x00\xd8" + f"\n{record}\n".encode("utf-16-le")
    (tmp_path / "a.jsonl").write_bytes(broken + record.encode("utf-16-le")[:-1])
    notices = Counter[str]()
    source = Source(kind="jsonl", path=tmp_path, damaged="skip")
    assert len(list(iter_documents(source, notices))) == 2
    assert notices == {"skipped: broken JSONL line": 2}


def test_whoever_reads_lines_reads_these(tmp_path: Path) -> None:
    """Examples of a fine-tuning, benchmarks, packs; in UTF-8 with a mark too."""
    line = json.dumps({"text": "hot", "label": "Wärme"}, ensure_ascii=False)
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        (tmp_path / "e.jsonl").write_bytes(f"{line}\n{line}\n".encode(encoding))
        assert [read for _, read in lines_of(tmp_path / "e.jsonl")] == [line.encode()] * 2
        settings = Finetune.model_construct(task="classify", fields=("text",), label="label", labels={}, instruction="")
        (example, _) = read_examples(settings, tmp_path / "e.jsonl")
        assert example.answers == ("Wärme",)


@pytest.mark.parametrize(
    "head", [b"", b"{", b"\xff", b'{"te', b"\0\0\0\0", b"a\0b\0", b"\xef\xbb\xbf{", b"\x00\xff\x01\x02"]
)
def test_others_are_let_be(head: bytes) -> None:
    assert wide_encoding(head) is None
