"""One process is the distributed path with one rank; two ranks really sum (see also test_data_parallel.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmforge.errors import InputError
from lmforge.parallel.mesh import join_mesh
from lmforge.recipe.schema import Parallel


def test_one_process_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    mesh = join_mesh()
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 2.0)
    mesh.sum_gradients([parameter])
    assert mesh.is_main
    assert parameter.grad.tolist() == [2.0, 2.0, 2.0]
    assert mesh.total(1.5, 2) == [1.5, 2.0]
    mesh.wait()
    mesh.close()


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        InputError, match=r"parallel\.data: 4 processes asked for, 1 started; run: torchrun --nproc-per-node 4"
    ):
        join_mesh(Parallel(data=4))


def test_two_ranks_sum(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import torch, sys\n"
        "from lmforge.parallel.mesh import join_mesh\n"
        "from lmforge.recipe.schema import Parallel\n"
        "mesh = join_mesh(Parallel(data=2))\n"
        "p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 3))\n"
        "p.grad, q.grad = torch.full((2,), mesh.rank + 1.0), torch.full((1, 3), 10.0 * mesh.rank)\n"
        "mesh.sum_gradients([p, q, torch.nn.Parameter(torch.zeros(1))])\n"
        "assert p.grad.tolist() == [3, 3] and q.grad.tolist() == [[10, 10, 10]], (p.grad, q.grad)\n"
        "assert mesh.total(mesh.rank + 1) == [3.0]\n"
        "mesh.wait(); mesh.close()\n"
        "open(sys.argv[1] + str(mesh.rank), 'w').write('ok')\n"
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
            str(tmp_path / "rank"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert sorted(p.name for p in tmp_path.glob("rank*")) == ["rank0", "rank1"]
