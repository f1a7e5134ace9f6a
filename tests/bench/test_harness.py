"""A row is written by itself: the others, and what another machine measured, stay as they are."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest
from bench.harness import Results, commit

from bench import harness


def test_a_partial_run_leaves_the_other_rows(tmp_path: Path) -> None:
    results = Results("x", folder=tmp_path)
    results.add("sizes/a", {"ratio": 1.5}, threads=1)
    elsewhere = json.loads(results.path.read_text())
    elsewhere["rows"]["sizes/a"]["machine"] = "another machine"
    elsewhere["machines"]["another machine"] = {"processor": "Z80"}
    results.path.write_text(json.dumps(elsewhere))
    results.add("sizes/b", {"ratio": 2.0})
    stored = json.loads(results.path.read_text())
    assert stored["rows"]["sizes/a"] == elsewhere["rows"]["sizes/a"]
    assert stored["rows"]["sizes/b"]["machine"] != "another machine"
    assert set(stored["machines"]) == {"another machine", stored["rows"]["sizes/b"]["machine"]}
    assert results.figures() == {"sizes": {"a": {"ratio": 1.5}, "b": {"ratio": 2.0}}}
    assert {"command", "commit", "day", "machine", "versions"} <= set(stored["rows"]["sizes/b"])


def test_every_benchmark_writes_its_rows_by_the_harness() -> None:
    """None opens bench/results itself, where a partial run would write over what another one measured."""
    for path in sorted((harness.ROOT / "bench").rglob("*.py")):
        tree = ast.parse(path.read_text())
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == "results"]
        assert not named or path.name == "harness.py", path


def test_results_do_not_make_a_commit_unclean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "a.py").write_text("a = 1\n")
    git("init")
    git("add", "-A")
    git("commit", "-m", "a")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    clean = commit()
    (tmp_path / "bench" / "results" / "x.json").write_text("{}")
    assert commit() == clean
    (tmp_path / "a.py").write_text("a = 2\n")
    assert commit() == f"{clean}+changes"
