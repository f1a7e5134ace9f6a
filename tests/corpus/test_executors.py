"""The same recipe gives the same bytes with any number of workers and on Slurm and Ray; a killed run goes on where it
stopped."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lmforge.corpus import build, executors
from lmforge.corpus.build import build_corpus, work_folder
from lmforge.corpus.steps import CorpusPlan, Step
from lmforge.errors import InputError, LmforgeError
from lmforge.recipe import Recipe, parse_recipe, to_toml
from lmforge.record import content_hash
from tests.corpus.test_build import jsonl, recipe, text


def corpus_recipe(folder: Path, documents: int = 400, **corpus: Any) -> Recipe:
    """Some files with exact and near duplicates and repeated lines among them."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(1)
    texts = [
        text(number, 60) + ("Follow us on all of our channels today!\n" if number % 3 else "")
        for number in range(documents)
    ]
    texts += rng.choices(texts, k=documents // 10) + [
        each.replace(" ", " and ", 3) for each in texts[: documents // 10]
    ]
    rng.shuffle(texts)
    files = [jsonl(folder / f"{number}.jsonl", texts[number::8]) for number in range(8)]
    return recipe(*files, near_duplicates=0.75, **corpus)


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TASK_BYTES", 20_000)


@pytest.mark.usefixtures("small_tasks")
def test_the_same_bytes_with_1_2_and_4_workers(tmp_path: Path) -> None:
    hashes = {}
    for workers in (1, 2, 4):
        build_corpus(corpus_recipe(tmp_path / "texts", workers=workers), tmp_path / f"corpus-{workers}")
        hashes[workers] = content_hash(tmp_path / f"corpus-{workers}")
    assert None not in hashes.values()
    assert len(set(hashes.values())) == 1


class Dies(Step):
    """A step whose second task ends its process."""

    name = "dies"

    def task(self, plan: CorpusPlan, folder: Path, rank: int, tasks: int) -> dict[str, int]:
        if rank == 1 and not (self.work / "mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


def test_a_worker_that_dies_is_noticed_and_the_next_run_goes_on(tmp_path: Path) -> None:
    CorpusPlan(parse_recipe({}), ()).save(tmp_path / "plan.json")
    with pytest.raises(LmforgeError, match="a worker process died"):
        executors.run_tasks("dies", Dies(tmp_path), [1, 1, 1], parse_recipe({}).corpus, tmp_path / "logs", 2)
    (tmp_path / "mended").touch()
    executors.run_tasks("dies", Dies(tmp_path), [1, 1, 1], parse_recipe({}).corpus, tmp_path / "logs", 2)
    assert sorted(path.name for path in (tmp_path / "dies").glob("[0-9]*")) == ["00000", "00001", "00002"]


def test_a_bad_line_in_a_worker_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TASK_BYTES", 1)
    made = corpus_recipe(tmp_path / "texts", documents=40, workers=2)
    with (tmp_path / "texts" / "3.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"3\.jsonl:\d+: not valid JSON"):
        build_corpus(made, tmp_path / "corpus")
    assert not work_folder(tmp_path / "corpus").exists()


BIN = Path(sys.executable).parent


def fake_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, runs: bool) -> Path:
    """sbatch, srun, squeue and scontrol that note what they are given; sbatch runs the job's tasks here if it
    `runs`."""
    folder.mkdir()
    log = folder / "calls"
    run = (
        'last=$(sed -n "s/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p" "$script"); '
        f'for i in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here bash "$script" >>{folder}/out 2>&1; '
        "done"
        if runs
        else ":"
    )
    scripts = {
        "sbatch": (
            f'for script; do :; done; echo "$@" >>{log}; cat "$script" >>{log}; {run}; echo Submitted batch job 17'
        ),
        "srun": 'while [ "${1#-}" != "$1" ]; do case "$1" in -n) shift;; esac; shift; done; exec "$@"',
        "squeue": "true",
        "scontrol": "echo here",
    }
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return log


SLURM = {"partition": "cpu", "time": "01:00:00", "memory_gb": 3, "sbatch": {"account": "me"}}


def test_slurm_jobs_are_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = fake_cluster(tmp_path / "cluster", monkeypatch, runs=False)
    monkeypatch.setattr(executors, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(executors, "LOST_SECONDS", 0.05)
    monkeypatch.setattr(build, "TASK_BYTES", 1)
    made = corpus_recipe(tmp_path / "texts", documents=40, executor="slurm", slurm=SLURM, workers=5)
    with pytest.raises(LmforgeError, match=r"8 of 8 tasks did not end; see .*logs/read/logs"):
        build_corpus(made, tmp_path / "corpus")
    script = (work_folder(tmp_path / "corpus") / "logs" / "read" / "launch_script.slurm").read_text()
    for line in (
        "partition=cpu",
        "time=01:00:00",
        "mem-per-cpu=3G",
        "array=0-7%5",
        "account=me",
        "job-name=lmforge-corpus-read",
        "cpus-per-task=1",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert f"export PATH={BIN}:$PATH" in script
    assert "launch_pickled_pipeline" in script
    assert script in log.read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert parse_recipe({"corpus": made.corpus.model_dump(mode="json")}).corpus.slurm == made.corpus.slurm


def test_slurm_needs_its_section_and_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"corpus: executor 'slurm' needs a \[corpus\.slurm\] section"):
        parse_recipe({"corpus": {"executor": "slurm"}})
    monkeypatch.setenv("PATH", str(tmp_path))
    made = corpus_recipe(tmp_path / "texts", documents=20, executor="slurm", slurm=SLURM)
    with pytest.raises(InputError, match="needs the command sbatch; run this on a login node"):
        build_corpus(made, tmp_path / "corpus")


@pytest.mark.slow
def test_the_same_bytes_on_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job scripts, run by a stand-in for Slurm that starts one process after another."""
    fake_cluster(tmp_path / "cluster", monkeypatch, runs=True)
    monkeypatch.setattr(executors, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(build, "TASK_BYTES", 60_000)
    build_corpus(corpus_recipe(tmp_path / "texts", executor="slurm", slurm=SLURM), tmp_path / "slurm")
    build_corpus(corpus_recipe(tmp_path / "texts"), tmp_path / "here")
    assert content_hash(tmp_path / "slurm") == content_hash(tmp_path / "here") is not None


@pytest.mark.slow
def test_the_same_bytes_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real cluster of one machine."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed; make test-slow installs it")
    monkeypatch.setattr(build, "TASK_BYTES", 60_000)
    try:
        build_corpus(corpus_recipe(tmp_path / "texts", executor="ray", workers=2), tmp_path / "ray")
    finally:
        ray.shutdown()
    build_corpus(corpus_recipe(tmp_path / "texts"), tmp_path / "here")
    assert content_hash(tmp_path / "ray") == content_hash(tmp_path / "here") is not None


@pytest.mark.slow
@pytest.mark.timeout(1200)  # eleven runs and their restarts, on a machine that may be busy
def test_killed_at_ten_random_moments_the_corpus_is_the_same(tmp_path: Path) -> None:
    made = corpus_recipe(tmp_path / "texts", documents=3000, workers=2)
    (tmp_path / "recipe.toml").write_text(to_toml(made))
    program = (
        "import sys; from pathlib import Path; from lmforge.corpus import build; from lmforge.recipe import "
        "load_recipe; "
        "build.TASK_BYTES = 200_000; build.build_corpus(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "recipe.toml")]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    whole = time.monotonic() - started
    rng, kills, gone_on = random.Random(5), 0, 0
    while kills < 10:
        process = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.9) * whole)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            gone_on += (work_folder(tmp_path / "killed") / "logs" / "read").exists()
        else:  # it was done before: the next ones start anew
            assert content_hash(tmp_path / "killed") == content_hash(tmp_path / "whole") is not None
            subprocess.run(["rm", "-r", str(tmp_path / "killed")], check=True)
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    assert gone_on
    assert content_hash(tmp_path / "killed") == content_hash(tmp_path / "whole") is not None
