"""A process that stops answering is named by all others, and a killed one is gone on without harm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from lmforge.parallel.lost import EXCHANGES, LostRanks, exchange_of
from lmforge.parallel.mesh import Mesh

STUCK: dict[str, Any] = {"__name__": EXCHANGES}
exec("def all_reduce(wait, group=None):\n    wait()\n", STUCK)  # a frame as torch's own exchanges have


def watched(
    work: Callable[[], object], limit: float, store: Any, others: tuple[int, ...] = ()
) -> tuple[list[str], list[int]]:
    """What rank 0 of three tells, and the status it ends with, while `work` runs; `others` said that they wait."""
    told: list[str] = []
    ended: list[int] = []
    mesh = Mesh(0, 3, torch.device("cpu"), limit=limit)
    for rank in others:
        store.set(f"lmforge/waits/{rank}", '{"step": 4, "operation": "forward", "exchange": "all_gather"}')
    with LostRanks(mesh, lambda: (4, "summing gradients"), told.append, ended.append, lambda: store):
        work()
    return told, ended


def test_a_rank_that_says_nothing_is_named_with_step_and_exchange() -> None:
    told, ended = watched(lambda: STUCK["all_reduce"](lambda: time.sleep(1.5)), 1.0, HashStore(), (1,))
    assert ended == [1]
    (words,) = told
    assert "rank 0: step 4: summing gradients: rank 2 missing: all_reduce of ranks 0, 1, 2 has waited for" in words
    assert "rank 1 waits in all_gather (step 4, forward)" in words


def test_a_store_that_does_not_answer_is_in_the_lost_rank() -> None:
    class Silent(HashStore):
        def set(self, _key: str, _value: str) -> None:
            time.sleep(5)

    told, ended = watched(lambda: STUCK["all_reduce"](lambda: time.sleep(1.5)), 1.0, Silent())
    assert ended == [1]
    assert "rank 0 missing (it holds the store)" in told[0]


def test_exchanges_that_go_on_are_left_alone() -> None:
    def many() -> None:
        for _ in range(60):
            STUCK["all_reduce"](lambda: time.sleep(0.02))

    assert watched(many, 0.8, HashStore()) == ([], [])
    assert watched(lambda: time.sleep(1.0), 0.8, HashStore()) == ([], [])
    assert exchange_of(sys._getframe(), 2) is None


def test_one_process_watches_nothing() -> None:
    before = threading.active_count()
    with LostRanks(Mesh(0, 1, torch.device("cpu")), lambda: (0, "")):
        assert threading.active_count() == before


SCRIPT = """
import os, signal, sys
from pathlib import Path
from lmforge.recipe import load_recipe
from lmforge.train.loop import train
from lmforge.train.step import TrainStep
base, tokens, name, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
real = TrainStep.run
def run(self, step, batch):
    if kind and step == 9 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), getattr(signal, kind))
    return real(self, step, batch)
TrainStep.run = run
figures = train(load_recipe(base / "r.toml", sys.argv[5:]), tokens, base / name, base / (name + "m"))
(base / f"{name}-hash").write_text(figures["weights_sha256"])
"""


def torchrun(
    tiny_run: Path, base: Path, name: str, kind: str, processes: int, *keys: str
) -> subprocess.CompletedProcess[str]:
    (base / "r.toml").write_text((tiny_run / "recipe.toml").read_text())
    (base / "run.py").write_text(SCRIPT)
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    tail = [str(base / "run.py"), str(base), str(tiny_run / "tokens"), name, kind, *keys]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    restarts = ["--max-restarts=2"] if kind == "SIGKILL" else []
    return subprocess.run([*head, *restarts, *tail], env=env, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_sigstop_is_told_in_every_log(tiny_run: Path, tmp_path: Path) -> None:
    """Four processes in both kinds of groups: also those that share nothing with the stopped one name it."""
    keys = ("parallel.shard=2", "parallel.tensor=2", "parallel.limit=20", "train.batch_tokens=512")
    ended = torchrun(tiny_run, tmp_path, "stopped", "SIGSTOP", 4, *keys)
    assert ended.returncode != 0
    for rank in (0, 2, 3):
        assert re.search(rf"rank {rank}: step 10: .*: rank 1 missing: \w+ of ranks", ended.stderr), ended.stderr


@pytest.mark.slow
def test_sigkill_is_gone_on_from(tiny_run: Path, tmp_path: Path) -> None:
    keys = ("parallel.shard=2", "train.batch_tokens=512", "train.initialisation='by_index'")
    whole = torchrun(tiny_run, tmp_path, "whole", "", 2, *keys)
    killed = torchrun(tiny_run, tmp_path, "killed", "SIGKILL", 2, *keys)
    assert (whole.returncode, killed.returncode) == (0, 0), killed.stderr
    assert "going on from step 8" in killed.stderr
    assert (tmp_path / "killed-hash").read_text() == (tmp_path / "whole-hash").read_text()
