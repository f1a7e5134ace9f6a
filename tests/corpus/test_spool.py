"""Records come back sorted, from their slice of hashes alone, whatever the runs; a killed task leaves nothing that
counts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.corpus import spool
from lmforge.corpus.spool import LineWriter, Runs, read_lines, read_slice, spooled_bytes, task_folder

RECORDS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 9)), max_size=50)


@given(RECORDS, st.integers(16, 400), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_slices_partition_the_records(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[int, int]], held: int, parts: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "RUN_BYTES", held)
        runs = Runs(folder, "pairs", 2)
        for one, other in records:
            runs.add(np.array([one], np.uint64), np.array([other], np.uint64))
        runs.close()
    slices = [read_slice([folder], "pairs", 2, part, parts) for part in range(parts)]
    assert [tuple(map(int, pair)) for each in slices for pair in each.T] == sorted(records)
    assert (spooled_bytes([folder], "pairs") > 0) == bool(records)
    for part, each in enumerate(slices):
        assert all(part * 2**64 // parts <= int(value) < (part + 1) * 2**64 // parts for value in each[0])


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), min_size=1), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_lines_survive(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], block: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_BLOCK_BYTES", block)
        writer = LineWriter(path)
        for line in lines:
            writer.write(line)
        writer.close()
    assert list(read_lines(path)) == lines


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), task_folder(tmp_path / "00001") as folder:
        (folder / "missing" / "half").write_text("x")
    assert not list(tmp_path.iterdir())
    for text in ("old", "new"):
        with task_folder(tmp_path / "00001") as folder:
            (folder / "whole").write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == ["00001"]
    assert (tmp_path / "00001" / "whole").read_text() == "new"
