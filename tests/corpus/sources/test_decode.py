"""Bytes of a file → text: encodings found, binary data refused, compressed files read or their damage named."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources import decode, unfold
from lmforge.corpus.sources.decode import encoding_of, line_number, lines_of, located_lines
from lmforge.corpus.sources.encodings import Binary
from lmforge.corpus.sources.wide import wide_encoding
from lmforge.errors import InputError

FIXTURE_KEPT = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.txt", b"plain", "utf-8"),
        ("a.txt", b"", "utf-8"),
        ("a.txt", "naïve".encode(), "utf-8"),
        ("a.txt", "naïve".encode("latin-1"), "cp1252"),
        ("a.txt", "x".encode("utf-8-sig"), "utf-8-sig"),
        ("a.txt", "größe".encode("utf-16"), "utf-16"),
        ("a.txt", "größe".encode("utf-32"), "utf-32"),
        ("a.py", "# -*- coding: cp1251 -*-\n# слово\n".encode("cp1251"), "cp1251"),
        ("a.txt", "# -*- coding: cp1251 -*-\n# слово\n".encode("cp1251"), "cp1251"),
        ("a.py", b"# -*- coding: no-such-thing -*-\n", "utf-8"),
    ],
)
def test_encodings(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    assert encoding_of(written(tmp_path / name, data)).name == expected


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"text\0text", "NUL byte at byte 4"),
        (b"\xff\x01\x02\x03" * 40, "control characters"),
        (b"\xff\xfe\x00\xd8", "does not decode"),
    ],
)
def test_binary_data_is_refused_with_what_gave_it_away(tmp_path: Path, data: bytes, word: str) -> None:
    with pytest.raises(Binary, match=word):
        encoding_of(written(tmp_path / "a.txt", data))


def test_a_nul_beyond_the_first_block_is_found_at_its_place(tmp_path: Path) -> None:
    with pytest.raises(Binary, match=f"at byte {3 << 20}"):
        encoding_of(written(tmp_path / "a.txt", b"a" * (3 << 20) + b"\0"))


@FIXTURE_KEPT
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=20),
    kind=st.sampled_from(["", ".gz", ".zst"]),
)
def test_lines_come_back_numbered(tmp_path: Path, lines: list[bytes], kind: str) -> None:
    data = b"\n".join(lines)
    packed = {"": data, ".gz": gzip.compress(data, mtime=0), ".zst": zstandard.compress(data)}[kind]
    marks = (b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
    if (not kind and packed.startswith(marks)) or wide_encoding(data[:4]):
        return
    expected = [(number, line.removeprefix(codecs.BOM_UTF8)) for number, line in enumerate(lines, start=1)]
    if expected and not lines[-1]:
        expected.pop()  # nothing after the last line end
    assert list(lines_of(written(tmp_path / f"a.jsonl{kind}", packed))) == expected


def test_members_and_padding_of_gzip_are_read_on(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gz", gzip.compress(b"one\n", mtime=0) + b"\0" * 512 + gzip.compress(b"two\n"))
    assert [line for _, line in lines_of(path)] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("name", "packed", "word"),
    [
        ("a.gz", gzip.compress(bytes(range(10, 250)) * 999)[:-20], "truncated gzip"),
        ("a.zst", zstandard.compress(bytes(range(10, 250)) * 999)[:-4], "truncated Zstandard"),
        ("a.gz", gzip.compress(b"text" * 999, mtime=0)[:12] + b"\xff" * 40, "damaged gzip"),
        ("a.gz", b"plain text", "not a .gz file"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, packed: bytes, word: str) -> None:
    path = written(tmp_path / name, packed)
    with pytest.raises(InputError, match=word) as error:
        list(lines_of(path))
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: does not exist"):
        list(lines_of(tmp_path / "nowhere.jsonl"))


def test_lines_of_a_range_are_those_that_begin_in_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b"one\n\nthree\nfour")
    whole = [(offset, line) for _, offset, line in located_lines(path)]
    assert whole == [(0, b"one"), (4, b""), (5, b"three"), (11, b"four")]
    for edge in range(16):
        pieces = [*located_lines(path, 0, edge), *located_lines(path, edge, 99)]
        assert [(offset, line) for _, offset, line in pieces] == whole
    assert [line_number(path, offset) for offset, _ in whole] == [1, 2, 3, 4]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_giant_line_is_refused_or_left_out_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(decode, "LONGEST_LINE", 3 << 20)
    data = b"first\n" + bytes(range(48, 58)) * (1 << 20) + b"\nlast"
    path = written(
        tmp_path / f"a.jsonl{suffix}",
        {"": data, ".gz": gzip.compress(data, 1, mtime=0), ".zst": zstandard.compress(data)}[suffix],
    )
    with pytest.raises(InputError, match=r"a\.jsonl(\.gz|\.zst)?:2: a line longer than 3 MiB"):
        list(lines_of(path))
    reasons: list[str] = []
    lines = [line for _, _, line in located_lines(path, damaged=lambda reason, error: reasons.append(reason))]
    assert (lines, reasons) == ([b"first", b"last"], ["line longer than 64 MiB"])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_refused_before_it_unfolds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(unfold, "UNFOLDED_FREELY", 8 << 20)
    zeros = b"0\n" * (20 << 20)
    path = written(
        tmp_path / f"a.jsonl{suffix}", gzip.compress(zeros, mtime=0) if suffix == ".gz" else zstandard.compress(zeros)
    )
    with pytest.raises(InputError, match=r"bomb: [\d,]+ bytes unfold to more than [\d,]+; readable up to line"):
        for _ in lines_of(path):
            pass
