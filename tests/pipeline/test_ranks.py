"""Several ranks: rank 0 decides and speaks, the others wait as long as it takes and do the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmforge.record import Record
from tests.conftest import tiny_recipe, tiny_texts

SOURCE = Path(__file__).parents[2] / "src"


def torchrun(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of lmforge on two ranks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "lmforge.cli", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_finished_run_ends_on_every_rank_with_one_object(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    before = (tmp_path / "run" / "record.json").read_bytes()
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(tiny_run), str(tmp_path / "run")))
    done = torchrun("run", recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert {figures["was"] for figures in json.loads(done.stdout).values()} == {"done"}
    assert (tmp_path / "run" / "record.json").read_bytes() == before


@pytest.mark.slow
def test_two_ranks_make_a_run_and_refuse_together(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "r.toml", tiny_texts(tmp_path / "texts"), tmp_path / "run", steps=4)
    done = torchrun("run", recipe, "--json", "--until", "train")
    assert done.returncode == 0, done.stderr
    assert [*json.loads(done.stdout)] == ["corpus", "tokens", "train"]
    assert done.stderr.count("── corpus") == 1
    assert Record(tmp_path / "run").stages["train"]["figures"]["steps"] == 4

    one = torchrun("train", recipe, "--json")
    assert one.returncode == 0, one.stderr
    assert json.loads(one.stdout)["steps"] == 4

    refused = torchrun("evaluate", recipe)
    assert refused.returncode != 0
    assert "lmforge/pipeline/run.py" not in refused.stderr  # torchrun's own traceback alone
    assert "needs 'compress', which is missing" in refused.stderr


@pytest.mark.slow
def test_rank_0_may_take_longer_than_any_collective_waits(tmp_path: Path) -> None:
    """With an operation's limit at two seconds, a corpus that takes five does not end the others."""
    recipe = tiny_recipe(tmp_path / "r.toml", tiny_texts(tmp_path / "texts"), tmp_path / "run", steps=2)
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib, sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'lmforge.pipeline.stages':\n"
        "            return None\n"
        "        sys.meta_path.remove(self)\n"
        "        import lmforge.parallel.mesh as mesh\n"
        "        mesh.GROUP_SECONDS = 2.0\n"
        "        import lmforge.corpus.build as build\n"
        "        real = build.build_corpus\n"
        "        build.build_corpus = lambda *a, **k: (time.sleep(5), real(*a, **k))[1]\n"
        "        return importlib.util.find_spec(name)\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    done = torchrun("run", recipe, "--json", "--until", "train", PYTHONPATH=f"{tmp_path}:{SOURCE}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
