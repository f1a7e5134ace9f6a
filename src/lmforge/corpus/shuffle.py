"""Put documents in an order that depends on their texts and the seed alone, and write them as compressed shards."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

SHARD_BYTES = 32_000_000  # text per shard: small enough to read again after a fault, large enough to compress well
_PARTITIONS = 256  # each is sorted in memory: at 100 GB of text about 0.4 GB
_BUFFER = 128 * 1024 * 1024  # bytes kept before anything is written to the disk
_HEADER = struct.Struct("<16sdIQQ")


class Entry(NamedTuple):
    """One copy of one document on its way into a shard."""

    key: bytes  # 16 bytes, uniform: the order
    place: float  # in [0, 1): decides the split
    copy: int  # 0, then 1, 2, … for a source of weight above 1
    text_bytes: int
    line: bytes  # the document as JSON, with its line end


class Shuffle:
    """External sort by `Entry.key`: partitions by the key's first byte, spilled under `folder` once the buffer is full."""

    def __init__(self, folder: Path, buffer: int = _BUFFER) -> None:
        self.folder, self.buffer, self.held, self.spilled = folder, buffer, 0, False
        self.parts: list[list[bytes]] = [[] for _ in range(_PARTITIONS)]

    def add(self, entry: Entry) -> None:
        """Take an entry."""
        header = _HEADER.pack(entry.key, entry.place, entry.copy, entry.text_bytes, len(entry.line))
        self.parts[entry.key[0]] += (header, entry.line)
        self.held += len(header) + len(entry.line)
        if self.held > self.buffer:
            self._spill()

    def _spill(self) -> None:
        self.spilled, self.held = True, 0
        for number, part in enumerate(self.parts):
            with (self.folder / f"spill-{number:03d}").open("ab") as file:
                file.writelines(part)
            part.clear()

    def sorted(self) -> Iterator[Entry]:
        """Every entry in order of its key; what was spilled is removed on the way."""
        if self.spilled:
            self._spill()
        for number, part in enumerate(self.parts):
            if self.spilled:
                path = self.folder / f"spill-{number:03d}"
                data = path.read_bytes()
                path.unlink()
            else:
                data = b"".join(part)
                part.clear()
            yield from sorted(_entries(data))


def _entries(data: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(data):
        key, place, copy, text_bytes, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        yield Entry(key, place, copy, text_bytes, data[at : at + length])
        at += length


class ShardWriter:
    """Writes lines to FOLDER/NAME-00000.jsonl.zst, NAME-00001.jsonl.zst, … of about `SHARD_BYTES` of text each."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.documents = self.bytes = self._shards = self._in_shard = 0
        self._file: BinaryIO | None = None
        self._packer: zstandard.ZstdCompressionWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, line: bytes, text_bytes: int) -> None:
        """Append one line, which carries `text_bytes` bytes of text."""
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
