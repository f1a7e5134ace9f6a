"""Two processes train what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmforge.recipe import load_recipe
from lmforge.train.loop import train
from tests.train.runs import gradients, losses, ragged, same

TWO_RANKS = """
import sys
from pathlib import Path
import torch
from lmforge.parallel.layout import join_layout
from lmforge.recipe import load_recipe
from lmforge.train.loop import Trainer, train
from lmforge.train.step import TrainStep
from tests.train.runs import ragged

base, tokens, name, dies_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
recipe = load_recipe(base / "r.toml", ["train.batch_tokens=512", "train.micro_batch_tokens=96"])
layout = join_layout(recipe.parallel)
run = Trainer(recipe, tokens, base / "g", layout)
rows = run.loader.share(layout.data_rank, layout.data_size)
run.step.gradient(0, ragged().part(rows.start, len(rows)))
torch.save([p.grad for p in run.model.parameters()], base / f"gradient{layout.rank}")
real = TrainStep.run
def step(self, number, batch):
    if number == dies_at:
        sys.exit(3)
    return real(self, number, batch)
TrainStep.run = step
figures = train(load_recipe(base / "r.toml", ["train.checkpoint_every=5"]), tokens, base / name, base / (name + "m"))
(base / f"{name}-hash").write_text(figures["weights_sha256"])
"""


def on_two_ranks(tiny_run: Path, base: Path, name: str, dies_at: int = -1) -> None:
    (base / "two.py").write_text(TWO_RANKS)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(base / "two.py"),
        str(base),
        str(tiny_run / "tokens"),
        name,
        str(dies_at),
    ]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    subprocess.run(
        command,
        check=dies_at < 0,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        timeout=280,
    )


def test_two_ranks_equal_one(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text((tiny_run / "recipe.toml").read_text())
    recipe = load_recipe(tmp_path / "r.toml")
    one = train(recipe, tiny_run / "tokens", tmp_path / "one", tmp_path / "onem")
    on_two_ranks(tiny_run, tmp_path, "two")
    whole = gradients(recipe, tiny_run / "tokens", tmp_path, 16 * 32, ragged())
    for rank in range(2):
        assert same(whole, torch.load(tmp_path / f"gradient{rank}"))
    assert losses(tmp_path / "two")[0][1] == pytest.approx(losses(tmp_path / "one")[0][1], rel=1e-6)
    assert losses(tmp_path / "two")[-1][1] == pytest.approx(losses(tmp_path / "one")[-1][1], rel=1e-3)
    assert one["steps"] == len(losses(tmp_path / "two"))


@pytest.mark.slow
def test_two_ranks_resume_exactly(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text((tiny_run / "recipe.toml").read_text())
    on_two_ranks(tiny_run, tmp_path, "whole")
    on_two_ranks(tiny_run, tmp_path, "killed", dies_at=8)
    assert len(losses(tmp_path / "killed")) == 8
    on_two_ranks(tiny_run, tmp_path, "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (tmp_path / "killed-hash").read_text() == (tmp_path / "whole-hash").read_text()
