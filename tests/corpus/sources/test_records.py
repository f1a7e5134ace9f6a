"""Records: which fields become what; JSONL and Parquet, whole and in ranges, and one exact line for each fault."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from lmforge.corpus.sources import files, records
from lmforge.corpus.sources.document import Reading
from lmforge.corpus.sources.kinds import iter_documents, parts
from lmforge.corpus.sources.records import BrokenRecord, document_of, read_jsonl
from lmforge.errors import InputError
from lmforge.recipe import Source
from tests.corpus.sources.reading import lines, read, read_in_parts, refusal


def test_fields_of_a_record(tmp_path: Path) -> None:
    reading = Reading(Source(kind="jsonl", path=tmp_path, text_field="body"), Counter())
    record = {
        "body": "b",
        "id": 3,
        "genre": "news",
        "url": "u",
        "nested": [1],
        "long": "x" * 300,
        "meta": {"k": 1},
        "source": "s",
    }
    assert document_of(record, reading, "f:1") == {
        "id": "3",
        "text": "b",
        "source": f"jsonl:{tmp_path.name}",
        "genre": "unknown",
        "meta": {"columns": {"genre": "news", "url": "u", "meta": {"k": 1}, "source": "s"}},
    }
    assert document_of({"body": None, "genre": "odd"}, reading, "f:1")["genre"] == "unknown"
    assert document_of({"body": None}, reading, "f:1")["id"] == "f:1"


def test_a_conversation_is_kept_and_its_words_are_the_text(tmp_path: Path) -> None:
    reading = Reading(Source(kind="jsonl", path=tmp_path), Counter())
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}, {"text": "!"}]},
    ]
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    document = document_of({"messages": messages, "id": "c"}, reading, "f:1")
    assert (document["text"], document["meta"]) == ("Hello\n\nHi!", {"messages": said})
    assert document_of({"messages": messages, "text": "t"}, reading, "f:1")["meta"] == {}  # the text field comes first


@pytest.mark.parametrize(
    "message",
    [{"content": "x"}, {"role": "user"}, {"role": "user", "content": 3}, {"role": "user", "content": [{}]}, "x"],
)
def test_what_is_no_message_is_refused(tmp_path: Path, message: object) -> None:
    reading = Reading(Source(kind="jsonl", path=tmp_path), Counter())
    with pytest.raises(BrokenRecord, match=r"^messages\[1\] is no message like"):
        document_of({"messages": [{"role": "user", "content": "a"}, message]}, reading, "f:1")


@pytest.mark.parametrize(
    "line", [b'{"text": NaN, "text": "last wins"}', b'{"text": "\\ud83d\\ude00 \\ud800"}', b'{"text": "x", "n": 1e999}']
)
def test_what_the_standard_library_reads_is_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    source = Source(kind="jsonl", path=path)
    [document] = read_jsonl(Reading(source, Counter()), parts(source)[0])
    assert document["text"]


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


def test_pages_of_parquet_are_held_against_their_checksums(tmp_path: Path) -> None:
    """A changed byte of compressed text unfolds to another text, and only the page's checksum knows."""
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"Row {number} of iron and steel {number * 7919}" for number in range(200)]})
    pyarrow.parquet.write_table(table, path, row_group_size=20, compression=None, write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Row 107 of iron", b"Row 107 of gold"))
    documents = read("parquet", path, damaged="skip")
    assert [each["text"].split()[1] for each in documents] == [str(n) for n in range(200) if not 100 <= n < 120]


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


def test_a_mark_before_any_member_and_ids_of_any_type(tmp_path: Path) -> None:
    mark, path = b"\xef\xbb\xbf", tmp_path / "a.jsonl.gz"
    ids = [7, "seven", "", None, True, 7.5, [1]]
    path.write_bytes(
        b"".join(gzip.compress(mark + json.dumps({"text": "x", "id": each}).encode() + b"\n") for each in ids)
    )
    names = [document["id"] for document in read("jsonl", path)]
    assert names == ["7", "seven", *(f"a.jsonl.gz:{number}" for number in range(3, 8))]
