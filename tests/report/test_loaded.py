"""Files of a run are read leniently, and their states told apart."""

import json
from pathlib import Path

import pytest

from lmforge.report.loaded import LoadedRun


def test_a_finished_run(finished_run: Path) -> None:
    run = LoadedRun(finished_run)
    assert run.name == "laptop"
    assert {run.state(name) for name in ("corpus", "tokens", "train", "compress", "evaluate")} == {"done"}
    assert run.state("report") == "not run yet"
    assert len(run.metrics()) == 1010
    assert [step["name"] for step in run.compression_steps()] == ["fp32", "quantize"]
    assert "manifest" not in run.tasks()
    assert list(run.tasks()) == sorted(run.tasks())


def test_items_are_read_only_as_far_as_shown(finished_run: Path) -> None:
    path = finished_run / "scores/completions_parse.items.jsonl"
    path.write_text('{"number": 1}\n{"number": 2}\n{broken\n')
    run = LoadedRun(finished_run)
    assert [item["number"] for item in run.items("completions_parse", 2)] == [1, 2]
    assert [item["number"] for item in run.items("completions_parse", 3)] == [1, 2]
    assert run.items("nothing", 3) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{", b'{"stages": [1]}', b"1" * 5000, b"[" * 100_000])
def test_a_broken_record_is_an_empty_one(finished_run: Path, content: bytes) -> None:
    (finished_run / "record.json").write_bytes(content)
    run = LoadedRun(finished_run)
    assert run.record == {}
    assert run.state("corpus") == "not run yet"


def test_what_the_record_and_the_files_disagree_on(finished_run: Path) -> None:
    (finished_run / "corpus/manifest.json").write_text(json.dumps({"content": "other", "files": {}}))
    (finished_run / "tokens/manifest.json").unlink()
    run = LoadedRun(finished_run)
    assert run.state("corpus") == "altered since"
    assert run.state("tokens") == "altered since"
    assert run.state("train") == "done"
