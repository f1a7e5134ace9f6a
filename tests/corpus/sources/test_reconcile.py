"""What a reader gives is what its file holds: any prefix, any damaged record, any splitting into members yields exactly
the undamaged records, and a count of the rest."""

import bz2
import gzip
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


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(data=st.data())
def test_any_prefix_gives_the_records_before_it_and_says_that_it_ends_early(
    tmp_path: Path, kind: SourceKind, packed: str, data: st.DataObject
) -> None:
    suffix, record, before, after, _ = KINDS[kind]
    records = [before, *(record(number) for number in range(12)), after]
    members = [PACK[packed](each) for each in records if each]
    whole = b"".join(members)
    place = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(whole[:place])
    ends = [sum(map(len, members[: number + 1])) for number in range(len(members))][1 if before else 0 :]
    complete = sum(end <= place for end in ends[:12])
    texts, skipped = read(kind, path)
    kept = len(texts)
    # a record whose last line end alone is cut is whole
    assert texts == [text.strip() for text in TEXTS[:kept]]
    assert complete <= kept <= complete + 1
    torn = bool(whole[place:].strip())
    if (
        torn
        and kept == complete
        and place not in [0, *ends]
        and (packed or kind != "jsonl" or ends[complete] - place > 1)
    ):
        assert skipped >= 1
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
    assert texts == [text.strip() for n, text in enumerate(TEXTS) if n != number]
    assert skipped >= 1


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
    assert (kept, skipped) == (texts[:100] + texts[200:], 1)
    path.write_bytes(data[:-9])
    assert read("parquet", path) == ([], 1)
