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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from lmforge.errors import LmforgeError
from lmforge.machine import cores
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.plan.here import KINDS, Speeds, amounts

REPEATS = 3
STEP = 0.002  # seconds of a step for reading the batch and telling of it, measured on one core
EXCHANGED = (1 << 12, 1 << 22)  # numbers of the all-reduces that are timed
TOGETHER_SECONDS = 120.0  # that the processes which are measured together may take
_PLAIN = GPTConfig(vocab_size=2048, context=256, layers=2, d_model=256, heads=4, kv_heads=4, d_ff=1024)


def configs() -> Iterator[tuple[GPTConfig, int]]:
    """(network, tokens of a micro-batch) that are timed: one thing at a time is changed from a plain one."""
    changes: tuple[dict[str, object], ...] = (
        {}, {"layers": 6}, {"d_model": 128, "heads": 2, "kv_heads": 2, "d_ff": 512, "layers": 6},
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
    """All of it, on one thread and then on all cores; a busy moment does not count where it passes."""
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
    """Bytes of a training's process before it has a network."""
    code = (
        "import lmforge.cli, lmforge.train.loop, lmforge.allocator as a, lmforge.machine as m; a.keep_freed_memory(); "
        "import lmforge.plan.probe as p; p.warm_up(); print(m.peak_bytes())"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def warm_up() -> None:
    """One small step, with which the libraries load what they need."""
    torch.set_num_threads(1)
    config = dataclasses.replace(_PLAIN, layers=1, d_model=32, heads=2, kv_heads=2, d_ff=64, context=32)
    model = GPT(config)
    model.initialise(1)
    tokens = torch.randint(0, config.vocab_size, (2, config.context))
    model.loss(tokens, tokens).backward()
    torch.optim.AdamW(model.parameters(), fused=True).step()


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


def _fastest(work: Callable[[], object], repeats: int = REPEATS) -> float:
    work()
    best = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def _pass_seconds(config: GPTConfig, tokens: int) -> float:
    """One micro-batch forward and backward."""
    model = GPT(config)
    model.initialise(1)
    batch = torch.randint(0, config.vocab_size, (tokens // config.context, config.context))

    def work() -> None:
        model.loss(batch, batch).backward()

    return _fastest(work)


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

    return _fastest(work) / size


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
    small, large = (_fastest(lambda size=size: dist.all_reduce(torch.zeros(size)), 5) for size in EXCHANGED)  # type: ignore[misc]
    dist.destroy_process_group()
    byte = max(0.0, large - small) / (4 * (EXCHANGED[1] - EXCHANGED[0]))
    beside = max(1.0, both / alone) if rank == 0 else 1.0
    print(json.dumps({"beside": beside, "message": small, "byte": byte}))


if __name__ == "__main__":
    _rank()
