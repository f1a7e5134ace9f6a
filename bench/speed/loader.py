"""How fast batches are served, how long a far step takes to find, whether memory stays flat, and how long training
waits for data.

    python -m bench.speed.loader [--metrics RUN/train/metrics.jsonl] [--steps 100000]
    python -m bench.speed.loader --memory        the memory alone again; the other results stay

One core. Shards of 128 M tokens in 3 files (uint16, documents of log-normal length; where masks are measured, 32 M
tokens, a quarter of them not counting) are made in a temporary folder. Each figure is the median of 7 rounds that
alternate between the ways measured; a round serves batches of 64 rows of 1,024 tokens for two seconds, beginning at a
step of its own. The floor is the time to write inputs and targets (16 bytes a token) from 2 bytes read, at the
bandwidth measured here for copying one array of 32 MB into another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from bench.harness import Results
from lmforge.errors import InputError
from lmforge.record import hash_file
from lmforge.tokens.bpe import train_tokenizer
from lmforge.tokens.documents import Encoded
from lmforge.tokens.loader import Loader, Prefetch
from lmforge.tokens.shards import FORMAT, Shards
from lmforge.tokens.writer import Names, TokenWriter
from lmforge.train.journal import read_lines

TOKENS, CONTEXT, ROWS = 128_000_000, 1024, 64
ROUNDS, SECONDS = 7, 2.0
RESULTS = Results("loader", packages=("numba",))


def make_shards(folder: Path, tokens: int, masked: bool) -> Shards:
    """Random tokens of a 50,000-token vocabulary in documents of about 300 tokens (log-normal, sigma 1) of two genres,
    3 to 1."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    train_tokenizer([], 257).save(folder / "tokenizer.json")
    names = Names()
    writer = TokenWriter(folder, "train", 50_000, names, grouped=True)
    while writer.tokens < tokens:
        batch = []
        for size in np.clip(rng.lognormal(5.2, 1, 2000).astype(int), 2, 20_000).tolist():
            text = rng.integers(1, 50_000, size, dtype=np.uint16)
            text[0] = 0
            counted = np.arange(size) > size // 2 if masked and size % 2 else None
            batch.append(Encoded(text, counted, 4 * size, "synthetic", "code" if rng.random() < 0.25 else "books"))
        writer.add(batch)
    writer.close()
    index = {
        "format": FORMAT,
        "vocab_size": 50_000,
        "dtype": "uint16",
        "tokenizer_sha256": hash_file(folder / "tokenizer.json"),
        "sources": [*names.sources],
        "genres": [*names.genres],
        "splits": {
            "train": {
                "tokens": writer.tokens,
                "documents": writer.documents,
                "bytes": writer.bytes,
                "files": writer.files,
            }
        },
    }
    (folder / "index.json").write_text(json.dumps(index))
    return Shards.open(folder, "train")


def served(loader: Loader, first: int, seconds: float = SECONDS) -> float:
    """Tokens a second from step `first` on."""
    loader.batch(first)
    step, started = first, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        step += 1
        loader.batch(step)
    return (step - first) * loader.ramp.rows(0) * loader.context / taken


def copied() -> float:
    """Bytes a second, read and written together, of copying one 32 MB array into another."""
    source = np.ones(4_000_000)
    target = np.empty_like(source)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / statistics.median(times)


def seek(make: Callable[[], Loader]) -> float:
    """Seconds of a new process's first batch at step 10⁶: opening the shards and finding the rows."""
    started = time.perf_counter()
    make().batch(10**6)
    return time.perf_counter() - started


def memory(loader: Loader, steps: int) -> dict[str, object]:
    """Private memory (USS, MB: without the pages of the shards, which are the system's cache) at five points of a run
    over `steps` steps."""
    process, seen = psutil.Process(), []
    prefetch = Prefetch(loader, range(loader.ramp.rows(0)), 0, steps)
    for step in range(steps):
        prefetch.take()
        if step % (steps // 5) == steps // 5 - 1:
            seen.append(round(process.memory_full_info().uss / 1e6, 1))
    prefetch.close()
    return {"steps": steps, "uss_mb": seen, "growth_mb": round(seen[-1] - seen[0], 1)}


def memory_alone(tokens: int, steps: int) -> None:
    """Measure memory and enter it into the results."""
    with tempfile.TemporaryDirectory(prefix="lmforge-bench-") as name:
        shards = make_shards(Path(name) / "plain", tokens, False)
        held = {way: memory(Loader(shards, 64, 8, 1, way), steps) for way in ("ring", "best_fit")}
    RESULTS.publish({"memory": held})


def waits(metrics: Path) -> dict[str, float]:
    """The share of a training run's time that went into waiting for data, from its metrics.jsonl."""
    lines = [line for line in read_lines(metrics) if "data_wait" in line]
    if not lines:
        raise InputError(f"{metrics}: no step says how long it waited for data; it is of an older version: train again")
    seconds = lines[-1]["seconds"]
    total = sum(line["data_wait"] for line in lines)
    return {"steps": len(lines), "seconds": seconds, "waited_seconds": round(total, 4), "share": total / seconds}


def main() -> None:
    """Measure and write bench/results/loader.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--metrics", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory:
        memory_alone(arguments.tokens, arguments.steps)
        return
    waited = waits(arguments.metrics) if arguments.metrics else None  # first: it is what can be wrong
    with tempfile.TemporaryDirectory(prefix="lmforge-bench-") as name:
        shards = {
            "plain": make_shards(Path(name) / "plain", arguments.tokens, False),
            "masked": make_shards(Path(name) / "masked", arguments.tokens // 4, True),
        }
        weights = [[(0.0, 1.0)], [(0.0, 1.0), (0.5, 3.0)]]
        ways: dict[str, Callable[[], Loader]] = {
            "ring": lambda: Loader(shards["plain"], CONTEXT, ROWS, 1),
            "ring, mixture": lambda: Loader(shards["plain"], CONTEXT, ROWS, 1, "ring", weights, 10_000),
            "ring, masked": lambda: Loader(shards["masked"], CONTEXT, ROWS, 1),
            "best_fit": lambda: Loader(shards["plain"], CONTEXT, ROWS, 1, "best_fit"),
            "best_fit, mixture, masked": lambda: Loader(
                shards["masked"], CONTEXT, ROWS, 1, "best_fit", weights, 10_000
            ),
        }
        loaders = {way: make() for way, make in ways.items()}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for loader in loaders.values():
            served(loader, 0, 1.0)  # reads the files once, compiles
        for number in range(ROUNDS):
            for way, loader in loaders.items():
                rates[way].append(served(loader, 1000 * number))
        bandwidth = copied()
        floor = bandwidth / 18
        speed = {
            way: {
                "tokens_per_second": round(statistics.median(found)),
                "of_floor": round(statistics.median(found) / floor, 3),
            }
            for way, found in rates.items()
        }
        seeks = {way: round(statistics.median(seek(make) for _ in range(ROUNDS)), 5) for way, make in ways.items()}
        small = {way: memory(Loader(shards["plain"], 64, 8, 1, way), arguments.steps) for way in ("ring", "best_fit")}
        result = {
            "context": CONTEXT,
            "rows": ROWS,
            "shards_tokens": arguments.tokens,
            "bandwidth_bytes_per_second": round(bandwidth),
            "floor_tokens_per_second": round(floor),
            "served": speed,
            "seek_to_step_1000000_seconds": seeks,
            "data_wait": waited,
        }
    RESULTS.publish({"run": result, "memory": small})


if __name__ == "__main__":
    main()
