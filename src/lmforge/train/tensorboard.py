"""Numbers by step in the file format that TensorBoard reads; `tensorboard --logdir RUN/train/tensorboard` draws them.

    record: length (8 bytes), CRC of it (4), data, CRC of the data (4)         TFRecord
    data:   Event {1: wall time, 2: step, 3: file version | 5: Summary {1: Value {1: tag, 2: number}} | 7: SessionLog
    {1: START}}      protobuf

Three messages of two fields each are written by hand rather than by a library of 100 MB.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

START = b"\x08\x01"  # of a session: what an earlier one wrote from this step on is to be forgotten


class EventFile:
    """One process's numbers, appended to a file of its own in `folder`."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: the last one that is kept of what earlier processes wrote there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / f"events.out.tfevents.{time.time_ns()}.lmforge").open("wb")
        self._write(0, _bytes(3, b"brain.Event:2"))
        if step:
            self._write(step + 1, _bytes(7, START))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """The finite numbers among `values`; those of nested mappings as NAME/INNER."""
        summaries = [
            _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in _numbers(values)
            if tag != "step"
        ]
        if summaries:
            self._write(step, _bytes(5, b"".join(summaries)))
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _write(self, step: int, content: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + content
        length = struct.pack("<Q", len(data))
        self.file.write(length + _masked(length) + data + _masked(data))


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + name, float(value)


def _bytes(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@cache
def _table() -> tuple[int, ...]:
    values = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        values.append(byte)
    return tuple(values)


def crc32c(data: bytes) -> int:
    """The CRC of Castagnoli et al. 1993."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
