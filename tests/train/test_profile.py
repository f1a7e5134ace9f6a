"""Profiles: begun when a run has settled, written once, nothing where none is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lmforge.train.profile import SETTLED, Profile

CPU = torch.device("cpu")


def test_the_steps_asked_for_are_recorded_once(tmp_path: Path) -> None:
    profile = Profile(tmp_path / "profile", 2, CPU)
    x = torch.randn(32, 32)
    for step in range(1, SETTLED + 6):
        x @ x
        profile.step_ended(step)
    profile.close()
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["step-00000004.json", "step-00000004.txt"]
    trace = json.loads((tmp_path / "profile" / "step-00000004.json").read_text())
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 2
    table = (tmp_path / "profile" / "step-00000004.txt").read_text().splitlines()
    assert "operation" in table[0]
    assert any(line.endswith("aten::mm") and line.split()[2] == "2" for line in table[1:])
    assert float(table[1].split("%")[0]) >= float(table[2].split("%")[0])


def test_none_and_one_cut_short(tmp_path: Path) -> None:
    for steps in (0, 100):
        profile = Profile(tmp_path / "profile", steps, CPU)
        for step in range(1, 6):
            profile.step_ended(step)
        profile.close()
    assert not (tmp_path / "profile").exists()
