"""TensorBoard's file format, read back by the book."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmforge.train.tensorboard import EventFile, crc32c


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else varint()
        yield (
            tag >> 3,
            struct.unpack({1: "<d", 5: "<f"}[kind], data[at : at + size])[0] if kind != 2 else data[at : at + size],
        )
        at += size


def records(path: Path) -> Iterator[dict[int, Any]]:
    """The events of a file, every checksum checked."""
    data = path.read_bytes()
    while data:
        (length,), content = struct.unpack("<Q", data[:8]), data[12 : 12 + struct.unpack("<Q", data[:8])[0]]
        for part, given in ((data[:8], data[8:12]), (content, data[12 + length : 16 + length])):
            crc = crc32c(part)
            assert struct.unpack("<I", given)[0] == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
        yield dict(fields(content))
        data = data[16 + length :]


def scalars(path: Path) -> list[tuple[int, str, float]]:
    written = []
    for event in records(path):
        for _, value in fields(event.get(5, b"")):
            parts = dict(fields(value))
            written.append((event[2], parts[1].decode(), parts[2]))
    return written


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


def test_numbers_are_written_and_the_rest_is_not(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tb", 0)
    events.add(
        1,
        {
            "step": 1,
            "loss": 2.5,
            "skipped": "why",
            "bad": math.nan,
            "flag": True,
            "layers": {"blocks.0": {"gradients": 0.25}},
        },
    )
    events.add(300, {"step": 300, "loss": 2})
    events.add(301, {"step": 301, "documents": ["a"]})
    events.close()
    (path,) = (tmp_path / "tb").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    assert scalars(path) == [(1, "loss", 2.5), (1, "layers/blocks.0/gradients", 0.25), (300, "loss", 2.0)]
    assert next(records(path))[3] == b"brain.Event:2"


def test_going_on_forgets_what_came_after(tmp_path: Path) -> None:
    EventFile(tmp_path, 0).close()
    EventFile(tmp_path, 7).close()
    second = max(tmp_path.iterdir())
    assert [(event.get(2), event.get(7)) for event in records(second)][1:] == [(8, b"\x08\x01")]


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    for last, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        events = EventFile(tmp_path, last)
        for step in steps:
            events.add(step, {"loss": step + last / 10})
        events.close()
    written = accumulator.EventAccumulator(str(tmp_path))
    written.Reload()
    assert [(event.step, round(event.value, 1)) for event in written.Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.2),
        (4, 4.2),
        (5, 5.2),
    ]
