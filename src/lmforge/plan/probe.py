"""This machine's CPU, measured once for `here`: small training passes of many kinds, timed, and what each unit of work
takes, so that all of them come out as near as can be.

    small networks ─timed─▶ seconds ─┐
    their amounts of work ───────────┴─ least squares, none below 0 ─▶ seconds for each unit
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from lmforge.allocator import keep_freed_memory
from lmforge.errors import LmforgeError
from lmforge.machine import cores
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.parallel.data import Bucket
from lmforge.plan.here import KINDS, Speeds, amounts

REPEATS = 5
STEP = 0.002  # seconds of a step for reading the batch and telling of it, measured on one core
EXCHANGED = (1 << 12, 1 << 22)  # numbers of the all-reduces that are timed
TOGETHER_SECONDS = 120.0  # that the processes which are measured together may take
_PLAIN = GPTConfig(vocab_size=2048, context=256, layers=2, d_model=256, heads=4, kv_heads=4, d_ff=1024)


def configs() -> Iterator[tuple[GPTConfig, int]]:
    """(network, tokens of a micro-batch) that are timed: one thing at a time is changed from a plain one."""
    changes: tuple[dict[str, object], ...] = (
        {}, {"layers": 6}, {"d_model": 128, "heads": 2, "kv_heads": 2, "d_ff": 512, "layers": 10},
        {"d_model": 512, "heads": 8, "kv_heads": 8, "d_ff": 2048}, {"d_model": 768, "heads": 12, "kv_heads": 12,
        "d_ff": 3072}, {"vocab_size": 8192}, {"context": 1024}, {"context": 2048}, {"recompute": True, "layers": 4},
        {"activation": "swiglu", "norm": "layernorm"}, {"d_ff": 256, "layers": 4},
        {"attention": ("sparse",), "context": 1024, "window": 128, "stride": 256, "pool": 64},
        {"attention": ("window",), "context": 2048, "window": 256}, {"attention": ("linear",), "context": 512},
        {"attention": ("linear",), "context": 1024, "layers": 4}, {"attention": ("lsh",), "context": 512},
        {"experts": 4, "d_ff": 1024}, {"experts": 8, "d_ff": 2048, "layers": 3},
    )  # fmt: skip
    for number, change in enumerate(changes):
        config = dataclasses.replace(_PLAIN, **change)  # type: ignore[arg-type]
        for tokens in (1024, 2048) if number < 4 else (2048,):
            yield config, max(tokens, config.context)


def measure() -> Speeds:
    """All of it, on one thread and then on all cores, with freed memory kept as training keeps it; of each the median
    time, as a training's usual step."""
    keep_freed_memory()
    rows, times = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for config, tokens in configs():
            rows.append([amounts(config, tokens)[kind] for kind in KINDS])
            times.append(_pass_seconds(config, tokens))
        fitted = non_negative(np.array(rows), np.array(times))
        update = _update_seconds()
    finally:
        torch.set_num_threads(threads)
    beside, message, byte = together(min(2, cores()))
    seconds = dict(zip(KINDS, map(float, fitted), strict=True))
    return Speeds(seconds, update, STEP, beside, message, byte, process_bytes(), cores())


def process_bytes() -> int:
    """Bytes of a training's process beside what it holds of a network: the peak of a training of next to nothing, with
    all that it loads.

    Raises:
        LmforgeError: it failed (its last words).
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "little.toml"
        recipe.write_text(_LITTLE.format(folder=folder))
        texts = Path(folder) / "texts"
        texts.mkdir()
        for number in range(40):
            lines = (f"Line {number * 50 + line} of a text that says {line * 7919 % 1000}." for line in range(50))
            (texts / f"{number}.txt").write_text("\n".join(lines))
        _said([sys.executable, "-m", "lmforge.cli", "run", str(recipe), "--until", "tokens"])
        code = (
            "import sys, lmforge.cli as c, lmforge.machine as m; sys.argv = ['lmforge', 'train', sys.argv[1]]\n"
            "try: c.main()\nfinally: print(m.peak_bytes(), flush=True)"
        )
        return int(_said([sys.executable, "-c", code, str(recipe)]).splitlines()[-1])


_LITTLE = """
run_dir = "{folder}/run"
[corpus]
sources = [{{ kind = "folder", path = "{folder}/texts" }}]
analyse_bytes = 0
[tokens]
vocab_size = 300
context = 32
[model]
layers = 1
d_model = 32
heads = 2
[train]
steps = 2
batch_tokens = 64
micro_batch_tokens = 64
validate_tokens = 64
threads = 1
compile = "off"
precision = "fp32"
"""


def _said(command: list[str]) -> str:
    """What a process says, which has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"WORLD_SIZE": "1", "RANK": "0"})
    if done.returncode:
        raise LmforgeError(f"plan --measure: a little training failed: {done.stderr[-500:]}")
    return done.stdout


def non_negative(amounts_of: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """x ≥ 0 that makes the relative errors of `amounts_of` · x against `seconds` least, by coordinate descent."""
    scaled = amounts_of / seconds[:, None]
    sizes = np.maximum(scaled.max(axis=0), 1e-300)
    a = scaled / sizes
    x = np.zeros(a.shape[1])
    for _ in range(3000):
        for column in range(a.shape[1]):
            rest = 1.0 - a @ x + a[:, column] * x[column]
            x[column] = max(0.0, float(a[:, column] @ rest / (a[:, column] @ a[:, column] + 1e-6)))
    return np.asarray(x / sizes)


def _usual(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median seconds, after once that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _pass_seconds(config: GPTConfig, tokens: int) -> float:
    """One micro-batch forward and backward, after a step that dropped its gradients."""
    model = GPT(config)
    model.initialise(1)
    batch = torch.randint(0, config.vocab_size, (tokens // config.context, config.context))

    def work() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(batch, batch).backward()

    return _usual(work)


def _update_seconds(size: int = 4_000_000) -> float:
    """Norm of the gradient, clipping, AdamW, dropping the gradient; for each parameter."""
    parameters = [torch.nn.Parameter(torch.randn(size // 8)) for _ in range(8)]
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def work() -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        optimizer.step()

    return _usual(work) / size


def together(ranks: int) -> tuple[float, float, float]:
    """(times as long a pass takes when `ranks` processes make it, seconds of an all-reduce of nothing and of each
    byte), by processes of their own.

    Raises:
        LmforgeError: they did not come to an end.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "lmforge.plan.probe"],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=TOGETHER_SECONDS)[0] for process in started]
        answers = [json.loads(each.decode().splitlines()[-1]) for each in said]
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise LmforgeError(f"plan --measure: the processes measured together did not answer ({error})") from error
    finally:
        for process in started:
            process.kill()
    beside, message, byte = (max(each[key] for each in answers) for key in _ANSWERS)
    return beside, message, byte


_ANSWERS = ("beside", "message", "byte")


def _exchanged(size: int) -> Callable[[], None]:
    """One sum of a gradient over the processes, as training makes it: copied together, summed, copied back."""
    parameter = torch.nn.Parameter(torch.zeros(size))
    parameter.grad = torch.zeros(size)
    bucket = Bucket([parameter], dist.group.WORLD)

    def work() -> None:
        bucket.begin()
        bucket.finish()

    return work


def _rank() -> None:
    """One of the processes that are measured together."""
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    alone = math.inf
    if rank == 0:
        alone = _pass_seconds(_PLAIN, 2048)
    if world == 1:
        print(json.dumps(dict.fromkeys(_ANSWERS, 0.0) | {"beside": 1.0}))
        return
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=TOGETHER_SECONDS))
    dist.barrier()
    both = _pass_seconds(_PLAIN, 2048)
    small, large = (_usual(_exchanged(size), 5) for size in EXCHANGED)
    dist.destroy_process_group()
    byte = max(0.0, large - small) / (4 * (EXCHANGED[1] - EXCHANGED[0]))
    beside = max(1.0, both / alone) if rank == 0 else 1.0
    print(json.dumps({"beside": beside, "message": small, "byte": byte}))


if __name__ == "__main__":
    _rank()
