"""Records of an archive, each on its own: what is wrong with one is one `Damage`, and the next is read."""

import gzip
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources import warc
from lmforge.corpus.sources.unfold import Break
from lmforge.corpus.sources.warc import Damage, records_of

BLOCKS = [b"block %d " % number + b"of the archive\r\n\r\n" * (number + 1) for number in range(6)]


def record(block: bytes, length: int | str | None = None, version: str = "1.0", end: bytes = b"\r\n") -> bytes:
    lines = [f"WARC/{version}", "WARC-Type: response", f"Content-Length: {len(block) if length is None else length}"]
    return b"".join(line.encode() + end for line in lines) + end + block + end * 2


def blocks_read(data: bytes, size: int = 1 << 20) -> list[bytes | Damage]:
    """The blocks of the records, the bytes given `size` at a time."""
    stream = (data[start : start + size] for start in range(0, len(data), size))
    return [each if isinstance(each, Damage) else each.block for each in records_of(stream)]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("version", ["1.0", "1.1", "0.17", "0.18"])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_records_whatever_the_blocks_they_come_in(size: int, version: str, end: bytes) -> None:
    assert blocks_read(b"".join(record(each, version=version, end=end) for each in BLOCKS), size) == BLOCKS


@pytest.mark.parametrize("between", [b"\r\n", b"\n" * 9, b"\r\n" * 5])
def test_blank_lines_between_records_do_not_matter(between: bytes) -> None:
    assert blocks_read(between.join(map(record, BLOCKS)) + between) == BLOCKS
    assert blocks_read(between + record(BLOCKS[1])) == BLOCKS[1:2]


@pytest.mark.parametrize("length", [0, 3, 10, 5000, 10**9, 10**14, "-1", "+5", "five", "", "1e3", "٣"])
@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("size", [33, 1 << 20])
def test_a_wrong_length_costs_one_record(length: int | str, place: int, size: int) -> None:
    data = b"".join(record(each, length if number == place else None) for number, each in enumerate(BLOCKS))
    given = blocks_read(data, size)
    assert [each for each in given if isinstance(each, bytes)] == BLOCKS[:place] + BLOCKS[place + 1 :]
    assert len(given) == len(BLOCKS)


def test_a_block_that_holds_a_record_is_one_record() -> None:
    inner = b"The format:\r\n\r\nWARC/1.0\r\nWARC-Type: response\r\nContent-Length: 5\r\n\r\nfive and more text\r\n"
    assert blocks_read(record(inner) + record(BLOCKS[1])) == [inner, BLOCKS[1]]


@given(st.binary(min_size=1, max_size=200), st.integers(0, 5))
@settings(deadline=None)
def test_bytes_between_records_are_one_damage_at_most(noise: bytes, place: int) -> None:
    if b"WARC/" in noise:
        return
    pieces = [record(each) for each in BLOCKS]
    given = blocks_read(b"".join([*pieces[:place], noise, b"\r\n", *pieces[place:]]))
    kept = [each for each in given if isinstance(each, bytes)]
    lost = [each for number, each in enumerate(BLOCKS) if each not in kept]
    # bytes right behind a record make its length doubtful: then that record is the one that is counted
    assert len(lost) <= 1
    assert len(given) - len(kept) == bool(noise.strip(b"\r\n"))


def test_the_beginning_of_a_member_ends_a_record_that_claims_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream() -> Iterator[bytes | Break]:
        for number, each in enumerate(BLOCKS):
            yield record(each, 10**6 if number == 2 else None)
            yield Break()

    given = list(records_of(stream()))
    assert [each.block for each in given if not isinstance(each, Damage)] == BLOCKS[:2] + BLOCKS[3:]
    assert sum(isinstance(each, Damage) for each in given) == 1


def test_a_gap_costs_what_it_tears_and_is_one_damage() -> None:
    torn = record(BLOCKS[1])
    stream: list[bytes | Break] = [record(BLOCKS[0]), torn[:30], Break("damaged gzip data"), record(BLOCKS[2])]
    given = [each if isinstance(each, Damage) else each.block for each in records_of(stream)]
    assert given == [BLOCKS[0], Damage("damaged gzip data"), BLOCKS[2]]


def test_of_a_long_record_the_beginning_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MOST_HELD", 1000)
    long = bytes(range(65, 91)) * 400
    given = list(records_of([record(long)[start : start + 100] for start in range(0, len(long) + 100, 100)]))
    [only] = [each for each in given if not isinstance(each, Damage)]
    assert (only.length, only.block) == (len(long), long[:1000])
    assert blocks_read(record(BLOCKS[1]) + record(long, 10**6) + record(BLOCKS[2]), 100)[::2] == [BLOCKS[1], BLOCKS[2]]


def test_nothing_and_no_archive() -> None:
    assert blocks_read(b"") == blocks_read(b"\r\n\r\n") == []
    assert [type(each) for each in blocks_read(b"words " * 1000)] == [Damage]
    assert [type(each) for each in blocks_read(gzip.compress(record(BLOCKS[1])))] == [Damage]
