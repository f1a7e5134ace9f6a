"""Where the tasks of a pass run: processes of this machine, Slurm jobs, a Ray cluster. The same steps, the same files.

    run_tasks(step, tasks, settings, logs)    one datatrove pipeline of one step; done tasks are skipped, so a killed
    pass goes on

Every task leaves its files, then a marker in `logs/completions/`; that is all the executors have in common, and all
that a pass that comes later needs. One worker runs the tasks in this process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from lmforge.errors import InputError, LmforgeError
from lmforge.progress import Bar
from lmforge.recipe import Corpus

POLL_SECONDS = 2.0  # between looks at the markers of tasks that run elsewhere
LOST_SECONDS = 60.0  # a Slurm job that is gone for so long, with tasks left, has failed


class Local(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's executor for one machine, on a pool that notices a worker's death (the stock pool waits for ever)."""

    def __init__(self, step: PipelineStep, tasks: int, workers: int, logs: Path, done: Callable[[int], None]) -> None:
        super().__init__([step], tasks=tasks, workers=workers, logging_dir=str(logs))
        self.done: Callable[[int], None] | None = done

    def run(self) -> None:
        """Run every task that has no marker yet."""
        left = self.get_incomplete_ranks()
        done, self.done = self.done, None  # what is sent to the workers is the executor without it
        assert done is not None
        if min(self.workers, len(left)) <= 1:
            for rank in left:
                self._run_for_rank(rank)
                done(rank)
            return
        self._in_processes(left, done)

    def _in_processes(self, left: Sequence[int], done: Callable[[int], None]) -> None:
        context = get_context("forkserver")  # forks from a process without threads, that has imported the steps once
        context.set_forkserver_preload(["lmforge.corpus.steps"])
        waiting = list(reversed(left))
        pool = ProcessPoolExecutor(min(self.workers, len(left)), mp_context=context, initializer=_start_worker)
        try:
            running: dict[Future[Any], int] = {}
            while waiting or running:
                while waiting and len(running) < 2 * self.workers:
                    rank = waiting.pop()
                    running[pool.submit(self._run_for_rank, rank)] = rank
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done(running.pop(future))
        except BrokenProcessPool as error:
            raise LmforgeError(
                "corpus: a worker process died (killed, or out of memory); run the same command again to go on, with "
                "fewer corpus.workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.disable("datatrove")  # errors come to the user as one line, progress as a bar
        return super()._run_for_rank(rank, local_rank, node_rank)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when the parent does, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_tasks(title: str, step: PipelineStep, sizes: Sequence[int], settings: Corpus, logs: Path, workers: int) -> None:
    """Run `step` for every task 0, 1, …, whose sizes in bytes are `sizes`; with a bar of their bytes. Returns when all
    are done.

    Raises:
        InputError, LmforgeError: what a task raised; or tasks on a cluster ended without their marker (names the logs).
    """
    marked = {int(path.name) for path in (logs / "completions").glob("*")}
    before = sum(size for rank, size in enumerate(sizes) if rank in marked)
    with Bar(title, sum(sizes), "B", done=before) as bar:
        if settings.executor == "local":
            Local(step, len(sizes), workers, logs, lambda rank: bar.step(sizes[rank])).run()
            return
        seen = set(marked)

        def look() -> int:
            for path in (logs / "completions").glob("*"):
                if (rank := int(path.name)) not in seen:
                    seen.add(rank)
                    bar.step(sizes[rank], f"{len(seen)} of {len(sizes)} tasks")
            return len(sizes) - len(seen)

        if settings.executor == "ray":
            _on_ray(step, len(sizes), workers, logs, look)
        else:
            _on_slurm(title, step, len(sizes), settings, logs, look)
        if look():
            raise LmforgeError(
                f"corpus: {look()} of {len(sizes)} tasks did not end; see {logs}/logs, mend the cause, run the same "
                "command again"
            )


def _on_ray(step: PipelineStep, tasks: int, workers: int, logs: Path, look: Callable[[], int]) -> None:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "corpus.executor: 'ray' needs the extra of that name; install it: pip install 'lmforge[ray]'"
        ) from error
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; without it, one on this machine
        ray.init(log_to_driver=False, include_dashboard=False)
    logger.disable("datatrove")
    executor = RayPipelineExecutor([step], tasks=tasks, workers=workers, logging_dir=str(logs), mem_per_cpu_gb=0)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            executor.run()
        except BaseException as error:  # handed to the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        look()
    if failed:
        cause = getattr(failed[0], "cause", None)
        raise cause if isinstance(cause, LmforgeError) else failed[0]


def _on_slurm(
    title: str, step: PipelineStep, tasks: int, settings: Corpus, logs: Path, look: Callable[[], int]
) -> None:
    executor = slurm_executor(title, step, tasks, settings, logs)
    try:
        executor.run()
    except FileNotFoundError as error:
        raise InputError(
            "corpus.executor: 'slurm' needs the command sbatch; run this on a login node of the cluster"
        ) from error
    except subprocess.CalledProcessError as error:
        raise LmforgeError(
            f"corpus: sbatch refused {logs}/launch_script.slurm (status {error.returncode}); see its message above"
        ) from error
    gone_since = None
    while look():
        time.sleep(POLL_SECONDS)
        alive = subprocess.run(
            ["squeue", "--noheader", "--jobs", str(executor.job_id)], capture_output=True, text=True
        ).stdout.strip()
        gone_since = None if alive else gone_since or time.monotonic()
        if gone_since and time.monotonic() - gone_since > LOST_SECONDS:
            return


def slurm_executor(title: str, step: PipelineStep, tasks: int, settings: Corpus, logs: Path) -> PipelineExecutor:
    """The pass as a Slurm array job: one element a task (more tasks an element once there are more than an array may
    have)."""
    from datatrove.executor.slurm import SlurmPipelineExecutor

    slurm = settings.slurm
    assert slurm is not None  # the recipe's check
    return SlurmPipelineExecutor(
        [step],
        tasks=tasks,
        time=slurm.time,
        partition=slurm.partition,
        mem_per_cpu_gb=slurm.memory_gb,
        cpus_per_task=1,
        qos=slurm.qos,
        job_name=f"lmforge {title}".replace(" ", "-"),
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
        logging_dir=str(logs),
        slurm_logs_folder=str(logs / "slurm"),
        max_array_size=slurm.max_array,
        tasks_per_job=-(-tasks // slurm.max_array),
        workers=settings.workers or -1,
        sbatch_args=dict(slurm.sbatch),
    )
