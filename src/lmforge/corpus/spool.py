"""Records and documents between the passes over a corpus: on disk, in sorted runs, each read again in slices.

Every task writes into a folder of its own that is renamed into place once it is whole, so that a task that was killed
leaves nothing behind that counts. A run's records are sorted by their first column; a slice of hashes is then one range
of each run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

RUN_BYTES = 4 << 20  # records gathered in memory before they are sorted and written
_BLOCK_BYTES = 1 << 20  # documents compressed together
_FAST = 1  # zstd level of what is read once more and thrown away


@contextlib.contextmanager
def task_folder(final: Path) -> Iterator[Path]:
    """A temporary folder for one task's output, renamed to `final` at the end; on any exception it is removed."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class Runs:
    """Writes records of `width` 64-bit columns as FOLDER/NAME-000.npy, …: each (width, records), sorted by column 0,
    then 1, …"""

    def __init__(self, folder: Path, name: str, width: int) -> None:
        self.folder, self.name = folder, name
        self._buffer = np.empty((width, max(1, RUN_BYTES // (8 * width))), np.uint64)
        self._held = self._runs = 0

    def add(self, *columns: U64) -> None:
        """Take records given as columns of equal length."""
        taken, count = 0, columns[0].size
        while taken < count:
            room = min(count - taken, self._buffer.shape[1] - self._held)
            for place, column in zip(self._buffer, columns, strict=True):
                place[self._held : self._held + room] = column[taken : taken + room]
            taken, self._held = taken + room, self._held + room
            if self._held == self._buffer.shape[1]:
                self.close()

    def close(self) -> None:
        """Write what is held."""
        if self._held:
            records = self._buffer[:, : self._held]
            np.save(
                self.folder / f"{self.name}-{self._runs:03d}.npy",
                np.ascontiguousarray(records[:, np.lexsort(records[::-1])]),
            )
            self._held, self._runs = 0, self._runs + 1


def read_slice(folders: Iterable[Path], name: str, width: int, part: int, parts: int) -> U64:
    """The records called `name` of all `folders` whose column 0 lies in the `part`-th of `parts` equal ranges;
    sorted."""
    low, high = (np.uint64(min((index << 64) // parts, (1 << 64) - 1)) for index in (part, part + 1))
    slices = []
    for folder in folders:
        for path in sorted(folder.glob(f"{name}-*.npy")):
            run = np.load(path, mmap_mode="r")
            end = run.shape[1] if part == parts - 1 else int(np.searchsorted(run[0], high))
            slices.append(np.array(run[:, int(np.searchsorted(run[0], low)) : end]))
    records = np.concatenate(slices, axis=1) if slices else np.empty((width, 0), np.uint64)
    return records[:, np.lexsort(records[::-1])]


def spooled_bytes(folders: Iterable[Path], name: str) -> int:
    """Bytes of the records called `name` in all `folders`."""
    return sum(path.stat().st_size for folder in folders for path in folder.glob(f"{name}-*.npy"))


class RowWriter:
    """Appends rows of one type to a file, to be read again by `rows_of`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.rows = 0

    def write(self, row: NDArray[Any]) -> None:
        """Append one row."""
        self._file.write(row.tobytes())
        self.rows += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def rows_of(path: Path, kind: np.dtype[Any], *shape: int) -> NDArray[Any]:
    """(rows, *shape) of `kind` that a `RowWriter` wrote, mapped, not read."""
    if not path.stat().st_size:
        return np.empty((0, *shape), kind)  # nothing to map
    return np.memmap(path, kind, mode="r").reshape(-1, *shape)


class LineWriter:
    """Writes lines in compressed blocks, to be read again by `read_lines`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._packer = zstandard.ZstdCompressor(level=_FAST)
        self._held: list[bytes] = []
        self._bytes = 0

    def write(self, line: bytes) -> None:
        """Take a line, which holds no line end."""
        self._held.append(line)
        self._bytes += len(line)
        if self._bytes >= _BLOCK_BYTES:
            self._flush()

    def _flush(self) -> None:
        block = self._packer.compress(b"\n".join(self._held))
        self._file.write(len(block).to_bytes(8, "little") + block)
        self._held, self._bytes = [], 0

    def close(self) -> None:
        """Write what is held and close the file."""
        if self._held:
            self._flush()
        self._file.close()


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines that a `LineWriter` wrote."""
    unpacker = zstandard.ZstdDecompressor()
    with path.open("rb") as file:
        while head := file.read(8):
            yield from unpacker.decompress(file.read(int.from_bytes(head, "little"))).split(b"\n")
