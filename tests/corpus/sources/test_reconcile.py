"""What a reader gives is what its file holds: any prefix, any damaged record, any splitting into members yields exactly
the undamaged records, and a count of the rest."""

import bz2
import gzip
import itertools
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources.kinds import iter_documents
from lmforge.errors import InputError
from lmforge.recipe import Source, SourceKind

QUICK = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
TEXTS = [
    f"Record {n}: " + f"the mill by the river ground {n * n} sacks of corn that year. " * (2 + n) for n in range(12)
]


def jsonl(number: int) -> bytes:
    return json.dumps({"text": TEXTS[number].strip()}).encode() + b"\n"


def warc(number: int) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + TEXTS[number].strip().encode()
    return (
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n"
        % (len(block), block)
    )


def page(number: int) -> bytes:
    text = escape(TEXTS[number].strip())
    return (
        f"<page><title>T</title><ns>0</ns><id>{number}</id><revision><text>{text}</text></revision></page>\n".encode()
    )


# kind, suffix, record, what stands before and after all of them, a byte of a record that damages it
KINDS: dict[SourceKind, tuple[str, Callable[[int], bytes], bytes, bytes, tuple[bytes, bytes]]] = {
    "jsonl": (".jsonl", jsonl, b"", b"", (b'{"text": ', b'{"text; ')),
    "warc": (".warc", warc, b"", b"", (b"Content-Length: ", b"Content-Length: x")),
    "mediawiki": (".xml", page, b"<mediawiki>\n", b"</mediawiki>\n", (b"<revision>", b"<revisoin>")),
}


# bytes behind a record's last, without which it is whole
TAILS: dict[SourceKind, int] = {"jsonl": 1, "warc": 4, "mediawiki": 1}


def read(kind: SourceKind, path: Path) -> tuple[list[str], int]:
    notices: Counter[str] = Counter()
    documents = list(iter_documents(Source(kind=kind, path=path, damaged="skip"), notices))
    skipped = sum(count for name, count in notices.items() if name.startswith("skipped: "))
    return [document["text"].strip() for document in documents], skipped


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_any_splitting_into_members_reads_the_same(
    tmp_path: Path, kind: SourceKind, packed: str, data: st.DataObject
) -> None:
    suffix, record, before, after, _ = KINDS[kind]
    whole = before + b"".join(map(record, range(12))) + after
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(b"".join(PACK[packed](piece) for piece in pieces))
    assert read(kind, path) == ([text.strip() for text in TEXTS], 0)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_any_prefix_gives_the_records_before_it_and_says_that_it_ends_early(
    tmp_path: Path, kind: SourceKind, packed: str, data: st.DataObject
) -> None:
    suffix, record, before, after, _ = KINDS[kind]
    members = [PACK[packed](each) for each in (before, *map(record, range(12)), after) if each]
    whole, ends = b"".join(members), [*itertools.accumulate(map(len, members))]
    place = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(whole[:place])
    # what ends a record after its last byte may be cut: line ends of a plain file, checksums of a packed one
    complete = sum(end - (TAILS[kind] if not packed else 0) <= place for end in ends[bool(before) :][:12])
    texts, skipped = read(kind, path)
    assert texts == [text.strip() for text in TEXTS[: len(texts)]]
    assert complete <= len(texts) <= complete + bool(packed)
    at_an_end = place in ends or (not packed and any(end - TAILS[kind] <= place <= end for end in ends))
    if kind == "mediawiki" and place < (ends[-1] - 1 if not packed else ends[-1]):
        at_an_end = False  # the dump's own end is missing
    assert skipped == (not at_an_end)
    if skipped:
        with pytest.raises(InputError):
            list(iter_documents(Source(kind=kind, path=path, damaged="refuse")))


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [0, 5, 11])
def test_a_record_that_is_damaged_is_one_and_counted(
    tmp_path: Path, kind: SourceKind, packed: str, number: int
) -> None:
    suffix, record, before, after, (right, wrong) = KINDS[kind]
    records = [record(n) if n != number else record(n).replace(right, wrong, 1) for n in range(12)]
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(PACK[packed](before + b"".join(records) + after))
    assert read(kind, path) == ([text.strip() for n, text in enumerate(TEXTS) if n != number], 1)


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(number=st.integers(0, 11), place=st.integers(12, 60))
def test_a_member_that_is_damaged_costs_its_own_record_only(
    tmp_path: Path, kind: SourceKind, number: int, place: int
) -> None:
    suffix, record, before, after, _ = KINDS[kind]
    members = [bytearray(gzip.compress(record(n), mtime=0)) for n in range(12)]
    members[number][place] ^= 0x55
    path = tmp_path / f"a{suffix}.gz"
    path.write_bytes(
        b"".join(gzip.compress(each, mtime=0) if each is before or each is after else each
                 for each in (before, *members, after) if each)
    )  # fmt: skip
    texts, skipped = read(kind, path)
    assert (texts, skipped) == ([text.strip() for n, text in enumerate(TEXTS) if n != number], 1)


@pytest.mark.parametrize("lie", [b"gzip", b"deflate", b"br", b"zstd", b"gzip, br", b"x-unknown"])
def test_a_body_that_is_not_what_its_header_says_is_read_or_counted(tmp_path: Path, lie: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: " + lie + b"\r\n\r\n"
    records = [warc(n) for n in range(12)]
    for number, body in ((3, TEXTS[3].strip().encode()), (7, b"\x1f\x8b\x08\0\1\2\3\4" * 9)):
        block = head + body
        records[number] = (
            b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n"
            % (len(block), block)
        )
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(records))
    texts, skipped = read("warc", path)
    assert texts == [text.strip() for n, text in enumerate(TEXTS) if n != 7]
    assert skipped == 1


def test_a_length_that_lies_costs_its_own_record_only(tmp_path: Path) -> None:
    for length in (10, 5000, 10**9, 10**14):
        records = [warc(n) for n in range(12)]
        head, rest = records[4].split(b"Content-Length: ")
        records[4] = head + b"Content-Length: %d" % length + rest[rest.index(b"\r") :]
        path = tmp_path / "a.warc"
        path.write_bytes(b"".join(records))
        texts, skipped = read("warc", path)
        assert texts == [text.strip() for n, text in enumerate(TEXTS) if n != 4], length
        assert skipped == 1


def test_a_member_beyond_a_mebibyte_is_read_once(tmp_path: Path) -> None:
    easy = [json.dumps({"text": f"line {n} of the watch on the pumps"}).encode() + b"\n" for n in range(60_000)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(map(PACK[".gz"], [b"".join(easy), jsonl(1), jsonl(2)])))
    texts, skipped = read("jsonl", path)
    assert (len(texts), len(set(texts)), skipped) == (60_002, 60_002, 0)


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"{n} {hash((n, n)):x}" for n in range(400)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts}), path, row_group_size=100, compression="none", use_dictionary=False,
        write_page_checksum=True, write_statistics=False,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    kept, skipped = read("parquet", path)
    assert (kept, skipped) == (texts[:100] + texts[200:], 100)
    path.write_bytes(data[:-9])
    assert read("parquet", path) == ([], 1)


# Kinds whose record is a file


def html(number: int) -> bytes:
    return f"<html><body><p>{TEXTS[number]}é</p><!-- é --></body></html>".encode()


def code(number: int) -> bytes:
    return f"# é {TEXTS[number]}\n".encode() + b"".join(b"value_%d = %d * weight\n" % (n, number) for n in range(9))


def table(number: int) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": [TEXTS[number]]}), sink)
    return bytes(sink.getvalue().to_pybytes())


# kind, suffix, the file of a record, what damages it
FILES: list[tuple[SourceKind, str, Callable[[int], bytes], Callable[[bytes], bytes]]] = [
    ("folder", ".txt", lambda number: TEXTS[number].encode(), lambda data: data[:50] + b"\0\1" + data[50:]),
    ("folder", ".txt.gz", lambda number: gzip.compress(TEXTS[number].encode()), lambda data: data[:40] + data[41:]),
    ("folder", ".rst", lambda number: TEXTS[number].encode("utf-16"), lambda data: data[:-1]),
    ("html", ".html", html, lambda data: data[:-20]),
    ("html", ".htm", html, lambda data: b"<b>" * 400 + data),
    ("code", ".py", code, lambda data: data + b"\0"),
    ("parquet", ".parquet", table, lambda data: data[:-6]),
    ("jsonl", ".jsonl", jsonl, lambda data: data[:-5]),
    ("warc", ".warc", warc, lambda data: data[:-30]),
    ("mediawiki", ".xml", lambda n: b"<mediawiki>" + page(n) + b"</mediawiki>", lambda data: data[:-40]),
]


@pytest.mark.parametrize(("kind", "suffix", "make", "damage"), FILES)
@QUICK
@given(broken=st.sets(st.integers(0, 11)))
def test_any_files_that_are_damaged_are_counted_and_the_others_read(
    tmp_path: Path,
    kind: SourceKind,
    suffix: str,
    make: Callable[[int], bytes],
    damage: Callable[[bytes], bytes],
    broken: set[int],
) -> None:
    for number in range(12):
        data = make(number)
        (tmp_path / f"{number:02}{suffix}").write_bytes(damage(data) if number in broken else data)
    texts, skipped = read(kind, tmp_path)
    kept = [TEXTS[number].strip() for number in range(12) if number not in broken]
    assert len(texts) == len(kept)
    assert all(text in given for text, given in zip(kept, texts, strict=True))
    assert skipped == len(broken)


@pytest.mark.parametrize("packed", [name for name in PACK if name])
@QUICK
@given(data=st.data())
def test_a_packed_text_in_any_members_is_whole_and_any_prefix_is_one_damage(
    tmp_path: Path, packed: str, data: st.DataObject
) -> None:
    whole = "\n\n".join(TEXTS).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    members = [PACK[packed](whole[a:b]) for a, b in itertools.pairwise([0, *cuts, len(whole)])]
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(b"".join(members))
    assert read("folder", path) == ([whole.decode().strip()], 0)
    ends = [*itertools.accumulate(map(len, members))]
    place = data.draw(st.integers(1, ends[-1] - 1))
    path.write_bytes(path.read_bytes()[:place])
    texts, skipped = read("folder", path)
    assert whole.decode().startswith("".join(texts))
    assert skipped == (place not in ends)


@QUICK
@given(place=st.integers(20, len(html(3)) - 1))
def test_any_prefix_of_a_page_is_read_or_counted(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(html(3)[:place])
    notices: Counter[str] = Counter()
    texts = [document["text"] for document in iter_documents(Source(kind="html", path=path), notices)]
    assert len(texts) + sum(notices.values()) == 1
    # a "<" with nothing behind it may be the page's own
    assert all(f"{TEXTS[3]}é".startswith(text.rstrip("\ufffd").removesuffix("<").rstrip()) for text in texts)
    inside = html(3)[:place].rfind(b"<") > html(3)[:place].rfind(b">")
    if inside and place > html(3)[:place].rfind(b"<") + 1:  # what can be told
        assert notices == {"skipped: page that ends within a tag": 1}


@QUICK
@given(place=st.integers(1, len(code(3)) - 1))
def test_any_prefix_of_a_source_file_is_read_as_it_is(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(code(3)[:place])
    notices: Counter[str] = Counter()
    texts = [document["text"] for document in iter_documents(Source(kind="code", path=path), notices)]
    if texts:
        assert texts == [code(3)[:place].decode("utf-8", "ignore")]
    assert len(texts) + sum(count for name, count in notices.items() if name.startswith("ignored: ")) == 1


@QUICK
@given(rows=st.integers(1, 60), group=st.integers(1, 25), data=st.data())
def test_parquet_in_any_row_groups_and_any_prefix(tmp_path: Path, rows: int, group: int, data: st.DataObject) -> None:
    path, texts = tmp_path / "a.parquet", [f"{TEXTS[number % 12]}{number}" for number in range(rows)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts}), path, row_group_size=group, compression="none", use_dictionary=False,
        write_page_checksum=True, write_statistics=False,
    )  # fmt: skip
    assert read("parquet", path) == (texts, 0)
    whole = path.read_bytes()
    table = pyarrow.parquet.ParquetFile(path).metadata
    number = data.draw(st.integers(0, table.num_row_groups - 1))
    start = table.row_group(number).column(0).data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
    lost = range(number * group, min(rows, (number + 1) * group))
    assert read("parquet", path) == ([text for n, text in enumerate(texts) if n not in lost], len(lost))
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    assert read("parquet", path) == ([], 1)
