"""Job files: valid for the shell, for YAML, for Python; what they run; what is missing is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.parallel.launch import ENVIRONMENT, Job, Target, job_files

RECIPE = 'name = "tiny"\n\n[tokens]\ncontext = 8  # "quoted": {{braces}} and $dollars\n'
JOB = Job(nodes=2, devices=4, time="1-00:00:00", image="lmforge:1", volume="runs", overrides=("train.peak_lr=1e-3",))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "it's a recipe.toml"
    path.write_text(RECIPE)
    return path


def written(target: Target, recipe: Path, job: Job = JOB) -> tuple[Path, str]:
    ((name, content),) = job_files(target, "tiny", recipe, job).items()
    path = recipe.parent / name
    path.write_text(content)
    return path, content


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def test_slurms_script_is_valid_and_starts_torchrun_on_every_node(recipe: Path, tmp_path: Path) -> None:
    path, content = written("slurm", recipe)
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    for line in ("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=1", "--time=1-00:00:00", "--requeue"):
        assert f"#SBATCH {line}\n" in content
    assert "partition" not in content
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools, "scontrol", "printf 'node7\\n'; sleep 0.2; seq -f 'node%.0f' 8 20000")  # longer than a pipe holds
    program(tools, "srun", 'printf "%s\\n" "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"; exit 3')
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "99",
    }  # fmt: skip
    ran = subprocess.run(["bash", path], env=environment, capture_output=True, text=True)
    assert ran.returncode == 3  # what the training ended with
    assert ran.stdout.splitlines() == [
        "1", "--kill-on-bad-exit=1", "torchrun", "--nnodes=2", "--nproc-per-node=4", "--max-restarts=3",
        "--rdzv-backend=c10d", "--rdzv-endpoint=node7:29500", "--rdzv-id=99", "-m", "lmforge.cli", "train",
        str(recipe), "--set", "train.peak_lr=1e-3",
    ]  # fmt: skip


def test_slurm_is_asked_again_when_the_time_is_over(recipe: Path, tmp_path: Path) -> None:
    path, _ = written("slurm", recipe)
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools, "scontrol", f'[ "$1" = requeue ] && echo "$2" > {tmp_path}/requeued; echo node7')
    # stands for a training that takes the signal, saves and ends
    program(tools, "srun", "trap 'exit 1' TERM; kill -TERM $PPID; while true; do sleep 0.05; done")
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node7", "SLURM_JOB_ID": "99",
    }  # fmt: skip
    subprocess.run(["bash", path], env=environment, capture_output=True, timeout=30)
    assert (tmp_path / "requeued").read_text() == "99\n"


def test_kubernetes_objects_load_and_belong_together(recipe: Path) -> None:
    yaml = pytest.importorskip("yaml")
    _, content = written("kubernetes", recipe)
    config, service, job = yaml.safe_load_all(content)
    assert config["data"]["recipe.toml"] == RECIPE
    assert service["spec"]["clusterIP"] == "None"
    assert job["kind"] == "Job"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    pod = job["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert {each["name"]: each["value"] for each in container["env"]} == ENVIRONMENT
    *_, command = container["command"]
    assert subprocess.run(["bash", "-n"], input=command, text=True).returncode == 0
    assert '--rdzv-endpoint="tiny-0.tiny:29500"' in command
    assert "train /recipe/recipe.toml --set train.peak_lr=1e-3" in command
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    cpus = yaml.safe_load_all(written("kubernetes", recipe, Job(2, 4, cpu=True, image="i", volume="v"))[1])
    assert [*cpus][2]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "4"}


RAY = """
import os, subprocess, sys
class exceptions: RayError = type("RayError", (Exception,), {})
class Actor:
    def __init__(self, of): self.of = of
    def options(self, **asked): return self
    def remote(self):
        node = self.of()
        class Handle:
            address = type("M", (), {"remote": staticmethod(node.address)})
            train = type("M", (), {"remote": staticmethod(node.train)})
        return Handle
def remote(**asked): return Actor
def init(address): assert address == "auto"
def get(value): return value
"""
GROUPS = """
class Group:
    def ready(self): return True
def placement_group(bundles, strategy):
    print(bundles, strategy, flush=True)
    return Group()
def remove_placement_group(group): print("removed", flush=True)
"""


@pytest.mark.parametrize(("ends_with", "attempts"), [(0, 1), (1, 4)])
def test_rays_driver_trains_on_every_node_and_tries_again(recipe: Path, ends_with: int, attempts: int) -> None:
    path, content = written("ray", recipe)
    compile(content, str(path), "exec")
    stub = recipe.parent / "stub"
    for name, body in (
        ("ray/__init__.py", RAY),
        ("ray/util/__init__.py", "def get_node_ip_address(): return '10.0.0.7'\n"),
        ("ray/util/placement_group.py", GROUPS),
        ("ray/util/scheduling_strategies.py", "def PlacementGroupSchedulingStrategy(*a, **k): return None\n"),
    ):
        (stub / name).parent.mkdir(parents=True, exist_ok=True)
        (stub / name).write_text(body)
    program(stub, "torchrun", f'echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@"; exit {ends_with}')
    environment = os.environ | {"PYTHONPATH": str(stub), "PATH": f"{stub}:{os.environ['PATH']}"}
    ran = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == ends_with, ran.stderr
    assert ran.stdout.count("[{'CPU': 1, 'GPU': 4}, {'CPU': 1, 'GPU': 4}] STRICT_SPREAD") == attempts
    assert ran.stdout.count("removed") == attempts
    line = "1 --nnodes=2 --nproc-per-node=4 --max-restarts=3 --rdzv-backend=c10d --rdzv-endpoint=10.0.0.7:29500"
    assert ran.stdout.count(line) == 2 * attempts


@pytest.mark.parametrize(
    ("target", "job", "words"),
    [
        ("slurm", Job(), "--nodes, --devices, --time"),
        ("kubernetes", Job(nodes=1, devices=1), "--image, --volume"),
        ("ray", Job(nodes=1), "--devices"),
        ("slurm", Job(1, 1, time="soon"), "--time soon"),
        ("ray", Job(0, 1), "--nodes 0"),
        ("kubernetes", Job(1, 1, image="i", volume="Not_A_Claim"), "--volume Not_A_Claim"),
    ],
)
def test_what_is_missing_or_wrong_is_said_at_once(target: Target, job: Job, words: str, recipe: Path) -> None:
    with pytest.raises(InputError, match=words):
        job_files(target, "tiny", recipe, job)


def test_a_layout_must_go_into_the_processes(recipe: Path) -> None:
    job_files("ray", "tiny", recipe, Job(2, 4), processes=4)
    with pytest.raises(InputError, match="multiple of 3"):
        job_files("ray", "tiny", recipe, Job(2, 4), processes=3)
