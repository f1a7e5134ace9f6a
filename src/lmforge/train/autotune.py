"""The fastest way to run a training step here, measured at start-up: replicas or threads, micro-batch, eager, compiled
or graphs, precision.

The choice is kept per machine and network shape (in the user's cache folder), because another thread count or
micro-batch adds up floating-point numbers in another order: a run that is stopped and started again must choose as
before, to the bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmforge import machine
from lmforge.errors import LmforgeError
from lmforge.machine import cores
from lmforge.model.gpt import GPT
from lmforge.parallel.thread_replicas import Replicas
from lmforge.progress import format_duration, log
from lmforge.recipe import Recipe
from lmforge.record import cache_directory, hash_json, write_atomic
from lmforge.train.precision import PROMISING, autocast, bfloat16_gain, safest_on_gpu

CHOICE_FORMAT = 5  # of the kept choice
COMPILE_SECONDS = 25.0  # a cold compile of a small network on two cores, measured (docs/internals/log.md)
COMPILE_GAIN = 0.15  # the most it gained there
HALF_GAIN = 1.1  # times as fast a step in bfloat16 must be to be taken


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """How a step is run: `replicas` networks side by side with one thread each, or one network on `threads` threads."""

    replicas: int
    threads: int
    micro_batch_tokens: int
    compiled: bool
    reason: str
    precision: str = "fp32"  # or bf16, fp16
    graphs: bool = False  # compiled code replayed as CUDA graphs


def _cache_file() -> Path:
    return cache_directory() / "fastest.json"


def choose(recipe: Recipe, model: GPT, device: torch.device, rows: int, steps: int, ranks: int = 1) -> ExecutionPlan:
    """The fastest of the allowed ways to run `rows` rows a step for `steps` steps. What the recipe states is not
    measured.

    On a GPU eager code, compiled code and CUDA graphs of it are measured. With several ranks nothing is measured (they
    must all choose alike): one thread each on a CPU, whole batch, eager, float32.
    Where the recipe states threads, micro-batch and compilation, an unstated precision on a CPU is float32, which is
    right everywhere.
    """
    train, context = recipe.train, recipe.tokens.context
    tokens = rows * context
    stated = (train.threads, train.micro_batch_tokens, train.compile, train.precision)
    precision, why = ("fp32", "a CPU") if train.precision == "auto" else (train.precision, "stated")
    if device.type == "cuda" and train.precision == "auto":
        precision, why = safest_on_gpu(device)
    if device.type == "cuda" and ranks == 1 and train.compile == "auto":
        return _measure_on_gpu(
            model,
            device,
            train.micro_batch_tokens or min(tokens, 65_536),
            context,
            f"{precision}: {why}",
            tokens * steps,
        )
    if device.type != "cpu" or ranks > 1:
        threads = train.threads or max(1, cores() // ranks)
        return ExecutionPlan(
            1,
            threads,
            train.micro_batch_tokens or min(tokens, 65_536),
            train.compile == "on",
            f"not measured: GPU or several ranks; {precision}: {why}",
            precision,
        )
    if train.threads is not None and train.micro_batch_tokens is not None and train.compile != "auto":
        replicas = 1 if train.compile == "on" else min(train.threads, rows)
        return ExecutionPlan(
            replicas, train.threads, train.micro_batch_tokens, train.compile == "on", "stated in the recipe", precision
        )
    key = hash_json(
        [CHOICE_FORMAT, machine.describe(), cores(), dataclasses.asdict(model.config), context, rows, steps, stated]
    )
    cached = _read_cache().get(key)
    if cached:
        return ExecutionPlan(**{**cached, "reason": f"measured here before ({cached['reason']})"})
    chosen = _measure(recipe, model, rows, steps)
    cache = _read_cache()
    cache[key] = dataclasses.asdict(chosen)
    try:
        write_atomic(_cache_file(), json.dumps(cache, indent=1))
    except LmforgeError as error:
        log(
            f"train: the measured choice could not be kept ({error}); pin train.threads and train.micro_batch_tokens "
            "for exact resume"
        )
    return chosen


def _read_cache() -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(_cache_file().read_text())
        return content
    except (OSError, json.JSONDecodeError):
        return {}


def _measure(recipe: Recipe, model: GPT, rows: int, steps: int) -> ExecutionPlan:
    train, context = recipe.train, recipe.tokens.context
    precision = "fp32" if train.precision == "auto" else train.precision
    # Replicas first: a later one must be 3% faster to be taken, so that noise decides nothing.
    threads = train.threads or cores()
    candidates = (
        [(min(threads, rows), threads), (1, threads)]
        if min(threads, rows) > 1 and train.compile != "on"
        else [(1, threads)]
    )
    best: tuple[float, int, int] | None = None
    notes = []
    for replicas, count in candidates:
        share = math.ceil(rows / replicas)
        sizes = (
            [train.micro_batch_tokens]
            if train.micro_batch_tokens
            else [size * context for size in sorted({share, max(1, min(share, 2048 // context))}, reverse=True)]
        )
        for size in sizes:
            seconds = _per_token(model, replicas, count, size, context, precision)
            notes.append(f"{replicas} replicas on {count} threads × {size} tokens {1 / seconds:,.0f} tok/s")
            if best is None or seconds < best[0] * 0.97:
                best = (seconds, replicas, size)
    assert best is not None
    seconds, replicas, size = best
    if train.precision == "auto":
        half, why = _is_bfloat16_faster(model, replicas, threads, size, context, seconds)
        precision, seconds = ("bf16", half) if half else (precision, seconds)
        notes.append(f"precision: {why}")
    total = seconds * rows * context * steps
    compiled, words = train.compile == "on", "asked for"
    if train.compile == "off":
        words = "off"
    elif train.compile == "auto" and model.config.image_size:
        words = "no: each number of images in a batch would be compiled anew"
    elif train.compile == "auto":
        compiled, words = _is_compiling_worth_it(model, threads, size, context, precision, seconds, total)
    return ExecutionPlan(
        1 if compiled else replicas, threads, size, compiled, "; ".join([*notes, f"compile: {words}"]), precision
    )


def _measure_on_gpu(
    model: GPT, device: torch.device, size: int, context: int, precision: str, total: int
) -> ExecutionPlan:
    """Eager, compiled, and compiled code replayed as CUDA graphs, for `total` tokens of training: the fastest whose
    compilation pays back and whose gradient is that of eager code."""
    kind = precision.split(":")[0]
    eager, expected = (
        _per_token(model, 1, cores(), size, context, kind),
        _gradient_norm(model, size, context, kind, None),
    )
    best, notes = (eager * total, False, False), [f"eager {1 / eager:,.0f} tok/s"]
    for graphs in (False, True):
        name = "CUDA graphs" if graphs else "compiled"
        started = time.perf_counter()
        try:
            seconds = _per_token(model, 1, cores(), size, context, kind, compiled=True, graphs=graphs)
            norm = _gradient_norm(model, size, context, kind, _compiled(model, graphs))
        except Exception as error:  # whatever the compiler stack raises, eager still works
            notes.append(f"{name}: failed here ({type(error).__name__})")
            continue
        cost = time.perf_counter() - started
        notes.append(f"{name} {1 / seconds:,.0f} tok/s after {cost:.0f} s")
        if not math.isclose(norm, expected, rel_tol=0.02):
            notes[-1] += f", with another gradient ({norm:.4g}, eager {expected:.4g})"
        elif seconds * total + cost < best[0]:
            best = (seconds * total + cost, True, graphs)
    return ExecutionPlan(1, cores(), size, best[1], "; ".join([*notes, precision]), kind, best[2])


def _gradient_norm(model: GPT, size: int, context: int, precision: str, compiled: Any) -> float:
    """Of `size` tokens, by eager code or by compiled; run twice, since the second run is the one that replays a
    graph."""
    tokens = _some_tokens(model, size, context)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with autocast(precision, tokens.device):
            loss = (compiled or model.loss)(tokens, tokens)
        (loss / size).backward()
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    model.zero_grad(set_to_none=True)
    return norm


def _some_tokens(model: GPT, size: int, context: int) -> torch.Tensor:
    tokens = torch.arange(size).remainder(model.config.vocab_size).view(-1, context)
    return tokens.to(next(model.parameters()).device)


def _compiled(model: GPT, graphs: bool) -> Any:
    compiled = torch.compile(model.loss, mode="reduce-overhead" if graphs else None)
    if not graphs:
        return compiled

    def replayed(*arguments: Any) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the last replay gave has been used
        loss: torch.Tensor = compiled(*arguments)
        return loss.clone()  # the next replay writes into the same memory

    return replayed


def compiled_loss(model: GPT, plan: ExecutionPlan) -> Any:
    """`model.loss` as `plan` runs it where it is compiled."""
    return _compiled(model, plan.graphs)


def _is_bfloat16_faster(
    model: GPT, replicas: int, threads: int, size: int, context: int, exact: float
) -> tuple[float | None, str]:
    """(seconds per token in bfloat16 where it is to be taken, why). Whole steps in it are measured only where a single
    product is fast."""
    gain = bfloat16_gain(model.config)
    if gain < PROMISING:
        return None, f"fp32 (a product in bfloat16 is {gain:.2f} times as fast)"
    seconds = _per_token(model, replicas, threads, size, context, "bf16")
    words = f"a step in bfloat16 is {exact / seconds:.2f} times as fast, a product {gain:.2f}"
    return (seconds, f"bf16 ({words})") if exact / seconds > HALF_GAIN else (None, f"fp32 ({words})")


def _is_compiling_worth_it(
    model: GPT,
    threads: int,
    size: int,
    context: int,
    precision: str,
    eager: float,
    total: float,
) -> tuple[bool, str]:
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++", "cl")):
        return False, "no C++ compiler here"
    if total * COMPILE_GAIN < 2 * COMPILE_SECONDS:
        return False, f"not worth it for {format_duration(total)} of training"
    started = time.perf_counter()
    try:
        seconds = _per_token(model, 1, threads, size, context, precision, compiled=True)
    except Exception as error:  # whatever the compiler stack raises, eager still works
        return False, f"failed here ({type(error).__name__})"
    cost = time.perf_counter() - started
    gain = total * (1 - seconds / eager) - cost
    return (
        gain > 0,
        f"{eager / seconds:.2f}× eager after {cost:.0f} s, {'saves' if gain > 0 else 'loses'} "
        f"{format_duration(abs(gain))}",
    )


def _per_token(
    model: GPT,
    replicas: int,
    threads: int,
    size: int,
    context: int,
    precision: str = "fp32",
    compiled: bool = False,
    repeats: int = 3,
    graphs: bool = False,
) -> float:
    """Median seconds per token of forward and backward passes of `size` tokens in each replica, after a warm-up;
    gradients are dropped."""
    tokens = _some_tokens(model, size, context)
    quick = _compiled(model, graphs) if compiled else None
    networks = Replicas(model, replicas, threads)

    def work(network: nn.Module, _rows: range) -> None:
        with autocast(precision, tokens.device):
            loss = quick(tokens, tokens) if quick else network.loss(tokens, tokens)  # type: ignore[operator]
        loss.backward()

    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        networks.run(work, range(replicas))
        if tokens.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    networks.close()
    return statistics.median(times[1:]) / (size * replicas)


def describe(chosen: ExecutionPlan) -> str:
    """The choice in words."""
    code = "compiled, as CUDA graphs" if chosen.graphs else "compiled" if chosen.compiled else "eager"
    compiled = f"{code}, {chosen.precision}"
    size = chosen.micro_batch_tokens
    return (
        f"{chosen.replicas} replicas on {chosen.threads} threads, micro-batches of {size} tokens, {compiled} "
        f"({chosen.reason})"
    )
