"""Each step stands in the metrics exactly once."""

from __future__ import annotations

from pathlib import Path

from lmforge.train.journal import Journal, read_lines


def test_going_on_drops_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 0)
    for step in range(1, 6):
        journal.write(step=step, loss=step / 2)
    journal.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4, 5]
    journal = Journal(path, 3)
    journal.write(step=4, loss=0.0)
    journal.close()
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 0.0)]


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
