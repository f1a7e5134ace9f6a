"""Put documents in an order that depends on their texts and the seed alone, and write them as compressed shards.

A document's place is a uniform 16-byte key. Each shard of a split takes an equal range of keys, so shards are sorted
one by one, in any order, by any process. A shard's range is cut into `PARTS`: tasks leave the entries of each part in a
frame of their runs, and the shard's writer reads one part's frames at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import zstandard

SHARD_BYTES = 32_000_000  # text per shard: small enough to read again after a fault, large enough to compress well
PARTS = 8  # of a shard: what its writer holds at once is one of them
RUN_BYTES = 8_000_000  # entries held by a task before they are written
_FAST = 1  # zstd level of what is read once more and thrown away
_HEADER = struct.Struct("<16sQQ")


class Entry(NamedTuple):
    """One copy of one document on its way into a shard."""

    key: bytes  # 16 bytes, uniform: the order
    text_bytes: int
    line: bytes  # the document as JSON, with its line end


class ShardCounts(NamedTuple):
    """How many shards each split has; shards are numbered through, split after split."""

    splits: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def holding(cls, text_bytes: dict[str, int]) -> ShardCounts:
        """Shards of about `SHARD_BYTES` for splits of so many bytes."""
        return cls(tuple(text_bytes), tuple(max(1, round(size / SHARD_BYTES)) for size in text_bytes.values()))

    def part(self, split: str, key: bytes) -> int:
        """The part of a shard that a document lies in: the shard's number times `PARTS`, and which of its parts."""
        at = self.splits.index(split)
        return PARTS * sum(self.counts[:at]) + (int.from_bytes(key[:8], "big") * PARTS * self.counts[at] >> 64)

    def file_name(self, shard: int) -> str:
        """Its file's name: train-00000.jsonl.zst."""
        for split, count in zip(self.splits, self.counts, strict=True):
            if shard < count:
                return f"{split}-{shard:05d}.jsonl.zst"
            shard -= count
        raise IndexError(shard)

    @property
    def total(self) -> int:
        """Shards of all splits together."""
        return sum(self.counts)


class Scatter:
    """Gathers entries and writes them as runs FOLDER/entries-000.bin with FOLDER/entries-000.npy, (parts, 2): offset
    and size of each part's frame."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder = folder
        self.frames: list[list[bytes]] = [[] for _ in range(PARTS * shards)]
        self._held = self._runs = 0

    def add(self, part: int, entry: Entry) -> None:
        """Take an entry of a part."""
        self.frames[part] += (_HEADER.pack(entry.key, entry.text_bytes, len(entry.line)), entry.line)
        self._held += _HEADER.size + len(entry.line)
        if self._held >= RUN_BYTES:
            self.close()

    def close(self) -> None:
        """Write what is held."""
        if not self._held:
            return
        places = np.zeros((len(self.frames), 2), np.int64)
        packer = zstandard.ZstdCompressor(level=_FAST)
        with (self.folder / f"entries-{self._runs:03d}.bin").open("wb") as file:
            for part, frame in enumerate(self.frames):
                if frame:
                    places[part] = file.tell(), file.write(packer.compress(b"".join(frame)))
                    frame.clear()
        np.save(self.folder / f"entries-{self._runs:03d}.npy", places)
        self._held, self._runs = 0, self._runs + 1


def gathered(folders: Sequence[Path], shard: int) -> Iterator[Entry]:
    """The entries of one shard from all tasks' runs, in order of their keys."""
    unpacker = zstandard.ZstdDecompressor()
    paths = [path for folder in folders for path in sorted(folder.glob("entries-*.bin"))]
    places = [np.load(path.with_suffix(".npy"))[PARTS * shard : PARTS * (shard + 1)].tolist() for path in paths]
    for part in range(PARTS):
        entries: list[Entry] = []
        for path, place in zip(paths, places, strict=True):
            offset, size = place[part]
            if size:
                with path.open("rb") as file:
                    file.seek(offset)
                    entries += _entries(unpacker.decompress(file.read(size)))
        yield from sorted(entries)


def _entries(data: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(data):
        key, text_bytes, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        yield Entry(key, text_bytes, data[at : at + length])
        at += length


class ShardWriter:
    """Writes lines to FOLDER/NAME-00000.jsonl.zst, NAME-00001.jsonl.zst, … of about `SHARD_BYTES` of text each; none
    for no lines."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.documents = self.bytes = self._shards = self._in_shard = 0
        self._file: BinaryIO | None = None
        self._packer: zstandard.ZstdCompressionWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, line: bytes, text_bytes: int) -> None:
        """Append one line, which brings its line end and carries `text_bytes` bytes of text."""
        if self._packer is None or self._in_shard >= SHARD_BYTES:
            self.close()
            self._file = (self.folder / f"{self.name}-{self._shards:05d}.jsonl.zst").open("wb")
            self._packer = zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(self._file)
            self._shards, self._in_shard = self._shards + 1, 0
        self._packer.write(line)
        self.documents += 1
        self.bytes += text_bytes
        self._in_shard += text_bytes

    def close(self) -> None:
        """End the shard that is being written."""
        if self._packer is not None:
            self._packer.flush(zstandard.FLUSH_FRAME)
            self._packer = None
        if self._file is not None:
            self._file.close()
            self._file = None


def write_shard(path: Path, entries: Iterable[Entry]) -> int:
    """Write entries as one compressed JSONL file, none for no entries; returns how many."""
    packer, count = zstandard.ZstdCompressor(level=3, write_checksum=True), 0
    with path.open("wb") as file, packer.stream_writer(file, closefd=False) as writer:
        for entry in entries:
            count += 1
            writer.write(entry.line)
    if not count:
        path.unlink()
    return count
