"""bench/gpu.sh runs whole, in small sizes and without a GPU, so that a lent one is not spent on its mistakes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_of_the_gpu_bench_runs(tmp_path: Path) -> None:
    there = {**os.environ, "OUT": str(tmp_path)}
    done = subprocess.run(["bench/gpu.sh", "--smoke"], cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu_smoke.json").read_text())["rows"]
    parts = {name: row["figures"] for name, row in rows.items()}
    assert [row["context"] for row in parts["utilisation"]] == [32, 32, 96, 96]
    assert all(row["utilization"] > 0 for row in parts["utilisation"])
    assert {"bf16_over_fp32", "fp16_over_fp32"} <= set(parts["precisions"])
    assert "left_out" in parts["beside_nanogpt"]
    assert parts["trained"]["train"]["valid_bits_per_byte"] > 0
    assert parts["trained"]["scores"]["tasks"]["bits_per_byte"]["value"] > 0


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(["bench/gpu.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("gpu.sh: torch of ")
    assert len(done.stderr.splitlines()) == 1
