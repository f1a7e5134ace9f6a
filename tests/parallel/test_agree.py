"""Rank 0 decides, however long it takes; the others wait and do the same, or end with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lmforge.parallel import agree

RANKS = """
import sys, time
from pathlib import Path
from lmforge.errors import LmforgeError
from lmforge.parallel import agree, mesh
from lmforge.recipe.schema import Parallel

mesh.GROUP_SECONDS, agree.POLL_SECONDS = 2.0, 0.5
if agree.is_main():
    time.sleep(4)  # a corpus that takes longer than a process group waits
for _ in range(2):  # also a second time in one process
    joined = mesh.join_mesh(Parallel(data=2))
    assert joined.total(1.0, joined.rank) == [2.0, 1.0]
    decided = joined.on_main(lambda: time.sleep(3) or {"run": ["train", joined.rank]})
    assert decided == {"run": ["train", 0]}, decided
    joined.wait()
    assert joined.total(1.0) == [2.0]
    joined.close()
assert agree.broadcast_from_main(agree.rank() + 5) == 5
try:
    agree.on_main(lambda: 1 / 0)
except ZeroDivisionError:
    assert agree.is_main()
except LmforgeError as error:
    assert not agree.is_main() and "rank 1 ends, since rank 0 failed: division by zero" in str(error)
Path(sys.argv[1], f"rank{agree.rank()}").write_text("ok")
"""


def test_one_process_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert agree.is_main()
    assert agree.broadcast_from_main({"a": 1}) == {"a": 1}
    assert agree.on_main(lambda: 3) == 3
    agree.wait_for_main()
    with pytest.raises(ZeroDivisionError):
        agree.on_main(lambda: 1 / 0)


@pytest.mark.parametrize("launcher", ["torchrun", "each rank by itself"])
def test_ranks_wait_longer_than_a_process_group_does(tmp_path: Path, launcher: str) -> None:
    """Under torchrun, which holds the store, and as Slurm starts them, where rank 0 holds it."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    if launcher == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        subprocess.run([*command, str(script), str(tmp_path)], check=True, capture_output=True, timeout=200, env=env)
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:  # a port that is free
            port = server.getsockname()[1]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        ranks = [
            subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**env, **address, "RANK": str(rank)})
            for rank in range(2)
        ]
        assert [process.wait(200) for process in ranks] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("rank?")) == ["rank0", "rank1"]
