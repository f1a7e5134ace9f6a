"""Compiled code outlives the process that compiled it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lmforge.record import cache_directory
from lmforge.train import compiling
from lmforge.train.compiling import FOLDER, keep_compiled_code

CHILD = """
import torch
from torch._dynamo.utils import counters
from lmforge.train.compiling import keep_compiled_code
keep_compiled_code()
torch.compile(lambda x: torch.relu(x @ x) + 1)(torch.ones(8, 8))
print(counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"])
"""


def test_the_users_cache_unless_another_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert keep_compiled_code() == cache_directory() / "compiled"
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert keep_compiled_code() == tmp_path


def test_torchs_own_default_is_nobodys_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, compiling._TORCHS, types.SimpleNamespace(default_cache_dir=lambda: "torchs"))
    monkeypatch.setenv(FOLDER, "torchs")  # as importing torch._dynamo leaves it
    assert keep_compiled_code() == cache_directory() / "compiled"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="nothing compiles here")
def test_the_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop(FOLDER, None)
    hits_and_misses = [
        subprocess.run(
            [sys.executable, "-c", CHILD], env=environment, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert hits_and_misses == [["1", "0"], ["0", "1"]]
    assert any((tmp_path / "lmforge" / "compiled").iterdir())
