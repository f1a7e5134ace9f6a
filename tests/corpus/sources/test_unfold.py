"""Compressed files: members and frames in any number and size, damage that costs its own member only."""

import bz2
import gzip
import itertools
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmforge.corpus.sources import unfold
from lmforge.corpus.sources.unfold import Break, blocks_and_breaks, blocks_of, members_of

FIXTURE_KEPT = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
NOISE = random.Random(0).randbytes(20_000)


def unfolded(path: Path) -> tuple[bytes, list[str]]:
    """The bytes of a file, and what is said of its damage."""
    pieces = list(blocks_and_breaks(path))
    causes = [piece.cause for piece in pieces if isinstance(piece, Break) and piece.cause]
    return b"".join(piece for piece in pieces if isinstance(piece, bytes)), causes


@pytest.mark.parametrize("suffix", PACK)
@FIXTURE_KEPT
@given(pieces=st.lists(st.binary(max_size=300), min_size=1, max_size=6), padding=st.integers(0, 600))
def test_members_are_read_on(tmp_path: Path, suffix: str, pieces: list[bytes], padding: int) -> None:
    path = tmp_path / f"a{suffix}"
    gap = bytes(padding if suffix == ".gz" else padding // 4 * 4 if suffix == ".xz" else 0)
    path.write_bytes(gap.join(map(PACK[suffix], pieces)) + gap)
    assert unfolded(path) == (b"".join(pieces), [])


@pytest.mark.parametrize("packed", [False, True])
def test_zstandard_frames_without_text_and_the_dictionary_of_an_archive(tmp_path: Path, packed: bool) -> None:
    def frame(mark: int, data: bytes) -> bytes:
        return mark.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data

    records = [b"iron %d and steel %d " % (number, number * 7) * 20 for number in range(200)]
    dictionary = zstandard.train_dictionary(1000, records)
    data = zstandard.compress(dictionary.as_bytes()) if packed else dictionary.as_bytes()
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    path = tmp_path / "a.warc.zst"
    path.write_bytes(frame(0x184D2A5D, data) + b"".join(map(packer.compress, records)))
    assert unfolded(path) == (b"".join(records), [])
    path.write_bytes(frame(0x184D2A50, b"a note") + b"".join(map(zstandard.compress, records)))
    assert unfolded(path) == (b"".join(records), [])


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20])
def test_a_member_around_a_mebibyte_and_beyond_what_is_held(tmp_path: Path, suffix: str, size: int) -> None:
    data = (b"iron and steel " * (size // 15 + 1))[:size]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](data) + PACK[suffix](b"after"))
    assert unfolded(path) == (data + b"after", [])


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_member_is_left_out_and_the_next_is_read(tmp_path: Path, suffix: str) -> None:
    members = [PACK[suffix](NOISE[start : start + 4000]) for start in range(0, 20_000, 4000)]
    broken = bytearray(members[2])
    broken[len(broken) // 2] ^= 0xFF
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join([*members[:2], broken, *members[3:]]))
    text, causes = unfolded(path)
    assert len(causes) == 1
    assert text.startswith(NOISE[:8000])
    assert text.endswith(NOISE[12_000:])
    assert NOISE[8000:12_000] not in text
    with pytest.raises(EOFError, match="damaged"):
        list(blocks_of(path))


@pytest.mark.parametrize("suffix", PACK)
@FIXTURE_KEPT
@given(data=st.data())
def test_any_prefix_gives_whole_members_and_says_that_it_ends(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    members = [PACK[suffix](NOISE[start : start + 2000]) for start in range(0, 8000, 2000)]
    place = data.draw(st.integers(9, sum(map(len, members)) - 1))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join(members)[:place])
    whole = sum(sum(map(len, members[: number + 1])) <= place for number in range(4))
    text, causes = unfolded(path)
    assert NOISE.startswith(text)
    assert len(text) >= 2000 * whole
    assert len(causes) == (sum(map(len, members[:whole])) != place)


def test_a_file_is_what_its_bytes_say(tmp_path: Path) -> None:
    for suffix, pack in PACK.items():
        path = tmp_path / "a.jsonl"
        path.write_bytes(pack(b"words"))
        assert unfolded(path) == (b"words", [])
        path = tmp_path / f"b{suffix}"
        path.write_bytes(b"plain words")
        assert unfolded(path) == (b"", [f"not a {suffix} file, whatever its name says"])
        path.write_bytes(b"")
        assert unfolded(path) == (b"", [])
    (tmp_path / "BZhang.txt").write_bytes(b"BZhang is a name, and so no bzip2")
    assert unfolded(tmp_path / "BZhang.txt")[1] == []


@FIXTURE_KEPT
@given(edges=st.lists(st.integers(0, 12_000), max_size=5))
def test_ranges_give_each_member_once(tmp_path: Path, edges: list[int]) -> None:
    members = [PACK[".gz"](b"HEAD%d " % number + NOISE[: 100 * number]) for number in range(12)]
    path = tmp_path / "a.gz"
    path.write_bytes(b"".join(members))
    size = path.stat().st_size
    cuts = [0, *sorted(min(edge, size) for edge in edges), size]
    ranges = [members_of(path, start, stop, b"HEAD") for start, stop in itertools.pairwise(cuts)]
    text = b"".join(piece for each in ranges for piece in each if isinstance(piece, bytes))
    assert text == b"".join(b"HEAD%d " % number + NOISE[: 100 * number] for number in range(12))


@pytest.mark.parametrize("suffix", PACK)
def test_a_bomb_is_named_before_it_fills_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(unfold, "UNFOLDED_FREELY", 4 << 20)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](bytes(24 << 20)))
    text, [cause] = unfolded(path)
    assert "bomb" in cause
    assert len(text) < 24 << 20
