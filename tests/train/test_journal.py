"""Each step stands in the metrics exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.train import journal as module
from lmforge.train.journal import Journal, Meter, matrix_peak, read_lines
from lmforge.train.tensorboard import EventFile
from tests.train.test_tensorboard import scalars


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


def test_numbers_go_to_the_event_file_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl", 0, EventFile(tmp_path / "tb", 0))
    journal.write(step=1, loss=0.5, skipped="no")
    journal.close()
    (path,) = (tmp_path / "tb").iterdir()
    assert scalars(path) == [(1, "loss", 0.5)]


def test_utilisation_is_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e9 < matrix_peak() < 1e17
    monkeypatch.setattr(module, "matrix_peak", lambda: 1e6)
    read = Meter(lambda context: 10.0 * context, torch.device("cpu"), 2).read(1000.4, 50)
    assert read["tokens_per_second"] == 1000
    assert read["utilization"] == pytest.approx(500 * 1000.4 / 2e6, abs=1e-4)
    assert 1e7 < read["memory_bytes"] < 1e11
