"""Every kind of attention in a whole model of 6 layers: a training step and decoding, from 1,024 to 30,000 tokens of
context.

    python -m bench.speed.attention                                   (all kinds and lengths; --kinds full sparse …
    --lengths 8192 … for some)
    python -m bench.speed.attention --rounds 3 --kinds full sparse    (a step at 30,000 tokens in turn, full, sparse,
    full, sparse, …, in one process)
    python -m bench.speed.attention --memory                          (peak memory of a step at 30,000 tokens, and what
    fills it)
    python -m bench.speed.attention --peers .peers/venv/bin/python    (one layer of Longformer, BigBird and Reformer in
    `transformers`, beside ours)

Each part adds to the same results, so that the whole can be made piece by piece. `full` is the library's own
scaled_dot_product_attention. Each kind runs in a process of its own, with memory as `lmforge` sets it: freed blocks are
kept, or with `--returned`, as with `train.return_memory`, those of 8 MiB and more go back to the system. The exponent
is
log(seconds at 30,000 / at 8,192) / log(30,000 / 8,192). The floor of a step is its operations
(`cost.training_flops_per_token`) at this machine's measured matrix peak, or the bytes that autograd keeps, written and
read once, at its measured copying speed, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import Results
from bench.peers.attention_layers import KINDS, PEERS, SHAPE, flex_forward, our_layer, peer_child

LENGTHS = (1024, 2048, 4096, 8192, 16_384, 30_000)
RESULTS = Results("attention", packages=("numba",))


def network(kind: str, threads: int) -> Any:
    """The model of a kind, warmed up."""
    import torch

    from lmforge.model.gpt import GPT, GPTConfig

    torch.set_num_threads(threads)
    model = GPT(GPTConfig(**SHAPE, **KINDS[kind]))
    model.initialise(1)
    some = torch.zeros(1, 600, dtype=torch.long)  # longer than the window, so that the band's loops are there
    model.loss(some, some).backward()
    return model


def child(kind: str, threads: int, lengths: list[int]) -> dict[str, Any]:
    """Seconds of a training step and of a decoded token of one kind, by length."""
    import torch

    from lmforge.model.attention import KVCache
    from lmforge.plan.cost import training_flops_per_token
    from lmforge.plan.memory import activation_bytes_per_token

    model, rows = network(kind, threads), {}
    # one thread: processor seconds, right on a shared machine too
    clock = time.process_time if threads == 1 else time.perf_counter
    for length in lengths:
        tokens, times = torch.randint(0, SHAPE["vocab_size"], (1, length)), []
        for _ in range(4 if length < 9000 else 1 if kind.startswith("full") and length > 16_384 else 3):
            started = clock()
            model.loss(tokens, tokens).backward()
            times.append(clock() - started)
            model.zero_grad()
        rows[str(length)] = {
            "step_seconds": statistics.median(times[1:] or times),
            "flops": length * training_flops_per_token(model.config, length),
            "kept_bytes": length * activation_bytes_per_token(model.config),
        }
        if "-" not in kind:
            with torch.inference_mode():
                cache = KVCache(1, 30_000, torch.device("cpu"))
                model.hidden(tokens[:, : length - 101], cache)
                times = []
                for step in range(100):
                    started = clock()
                    model(tokens[:, step : step + 1], cache)
                    times.append(clock() - started)
            rows[str(length)] |= {"decode_seconds": statistics.median(times[20:]), "cache_bytes": cache.nbytes}
    return rows


def in_turn(kinds: list[str], threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step at 30,000 tokens, the kinds one after another in each round, so that whatever the machine does
    meets all of them."""
    import torch

    models, tokens = (
        {kind: network(kind, threads) for kind in kinds},
        torch.randint(0, SHAPE["vocab_size"], (1, 30_000)),
    )
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, model in models.items():
            started = clock()
            model.loss(tokens, tokens).backward()
            seconds[kind].append(round(clock() - started, 3))
            model.zero_grad()
    middle = {kind: statistics.median(each) for kind, each in seconds.items()}
    return {
        kind: {"seconds": seconds[kind], "median": middle[kind], "faster_than_first": middle[kinds[0]] / middle[kind]}
        for kind in kinds
    }


def memory(kind: str, threads: int, length: int) -> dict[str, int]:
    """One step: the most that the process held above what it held before (Linux), and the most that the library's
    tensors did."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    model = network(kind, threads)
    tokens = torch.randint(0, SHAPE["vocab_size"], (1, length))
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now: importing and compiling once took more
    before = held_at_most()
    model.loss(tokens, tokens).backward()
    process = held_at_most() - before  # the profiler's own records would be in it below
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model.loss(tokens, tokens).backward()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return {"process_peak_bytes": process, "tensors_peak_bytes": most}


def held_at_most() -> int:
    """Bytes of memory that this process held at most since the mark was last reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def ask(python: str, *arguments: str) -> Any:
    """Run this file again as a child and read its answer."""
    done = subprocess.run([python, "-m", "bench.speed.attention", *arguments], capture_output=True, text=True)
    if done.returncode:
        return {
            "failed": done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"exit {done.returncode}"
        }
    return json.loads(done.stdout.strip().splitlines()[-1])


def peaks(threads: int) -> dict[str, float]:
    """FLOP/s of the best of several large fp32 products, bytes/s read and written by the best of several large
    copies."""
    import torch

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    a, source = torch.randn(1536, 1536), torch.ones(1 << 25)
    target = torch.empty_like(source)

    def best(work: Any) -> float:
        times = []
        for _ in range(8):
            started = clock()
            work()
            times.append(clock() - started)
        return min(times)

    return {
        "matrix_peak_flops": 2 * 1536**3 / best(lambda: a @ a),
        "copy_bytes_per_second": 8 * len(source) / best(lambda: target.copy_(source)),
    }


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Ratios from what was measured so far; prints them."""
    kinds, full = results["kinds"], results["kinds"].get("full", {}).get("30000")
    everything: dict[str, Any] = {}
    for kind, rows in kinds.items():
        ratios = {}
        if {"8192", "30000"} <= set(rows):
            last = rows["30000"]
            floor = max(
                last["flops"] / results["matrix_peak_flops"], 2 * last["kept_bytes"] / results["copy_bytes_per_second"]
            )
            ratios |= {
                "exponent_8192_30000": math.log(last["step_seconds"] / rows["8192"]["step_seconds"])
                / math.log(30_000 / 8192),
                "floor_seconds": floor,
                "over_floor": last["step_seconds"] / floor,
            }
            if full:
                ratios["step_faster_than_full"] = full["step_seconds"] / last["step_seconds"]
            alike = kinds.get("-".join(("full", *kind.split("-")[1:])), {}).get("30000")
            if alike:
                ratios["step_faster_than_full_with_the_same_options"] = alike["step_seconds"] / last["step_seconds"]
            if "decode_seconds" in last and "1024" in rows:
                ratios["decode_30000_over_1024"] = last["decode_seconds"] / rows["1024"]["decode_seconds"]
        taken, all_of_it = results.get("memory", {}).get(kind), results.get("memory", {}).get("full")
        if taken and all_of_it:
            ratios |= {
                f"{name}_of_full": taken[name] / all_of_it[name]
                for name in taken
                if name.endswith("bytes") and name in all_of_it
            }
        everything[kind] = ratios
        print(f"{kind:18s} " + ", ".join(f"{name} {value:.3f}" for name, value in ratios.items()), flush=True)
    return everything


# long: options, then one branch each
def main() -> None:
    """Measure, add to the results, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS))
    parser.add_argument("--memory", action="store_true", help="measure memory instead, at 30,000 tokens")
    parser.add_argument(
        "--returned", action="store_true", help="large freed blocks go back to the system (results under KIND-returned)"
    )
    parser.add_argument("--peers", help="a Python that has transformers")
    parser.add_argument("--threads", type=int, default=1, help="1 times processor seconds, more the clock on the wall")
    parser.add_argument("--rounds", type=int, default=0, help="so many steps of each kind at 30,000 tokens, in turn")
    parser.add_argument("--child", choices=KINDS)
    parser.add_argument("--in-turn", action="store_true")
    parser.add_argument("--peer-child", choices=PEERS)
    parser.add_argument("--layer", choices=KINDS)
    parser.add_argument("--flex", action="store_true")
    arguments = parser.parse_args()
    if arguments.child or arguments.in_turn or arguments.peer_child or arguments.layer or arguments.flex:
        answer: Any
        if arguments.in_turn or arguments.child:
            from lmforge.allocator import keep_freed_memory, memory_for

            keep_freed_memory()
        if arguments.in_turn:
            answer = in_turn(arguments.kinds, arguments.threads, arguments.rounds)
        elif arguments.child:
            with memory_for(arguments.returned):
                answer = (
                    memory(arguments.child, arguments.threads, 30_000)
                    if arguments.memory
                    else child(arguments.child, arguments.threads, arguments.lengths)
                )
        elif arguments.layer:
            answer = our_layer(arguments.layer, arguments.threads)
        else:
            answer = (
                flex_forward(arguments.threads)
                if arguments.flex
                else peer_child(arguments.peer_child, arguments.threads)
            )
        print(json.dumps(answer))
        return
    results = RESULTS.figures()
    about = {"threads": arguments.threads}
    RESULTS.add("shape", SHAPE)
    for name, value in peaks(arguments.threads).items():
        RESULTS.add(name, max(value, results.get(name, 0)), **about)  # a busy moment must not lower the floor
    threads = ("--threads", str(arguments.threads))
    lengths = ("--lengths", *map(str, arguments.lengths))
    if arguments.peers:
        for name in PEERS:
            RESULTS.add(f"peers/{name}", ask(arguments.peers, "--peer-child", name, *threads), **about)
        for kind in ("window", "lsh", "full", "sparse"):
            RESULTS.add(f"peers/ours-{kind}", ask(sys.executable, "--layer", kind, *threads), **about)
        RESULTS.add("peers/window_forward", ask(sys.executable, "--flex", *threads), **about)
        print(json.dumps(RESULTS.figures()["peers"], indent=1))
    if arguments.rounds:
        turns = ask(
            sys.executable, "--in-turn", "--rounds", str(arguments.rounds), *threads, "--kinds", *arguments.kinds
        )
        RESULTS.publish({"in_turn": turns}, **about)
    for kind in () if arguments.peers or arguments.rounds else arguments.kinds:
        returned = ("--returned",) if arguments.returned else ()
        name = "-".join((kind, *(option[2:] for option in returned)))
        if arguments.memory:
            peak = ask(sys.executable, "--child", kind, *threads, "--memory", *returned)
            RESULTS.add(f"memory/{name}", peak, **about)
        else:
            measured = ask(sys.executable, "--child", kind, *threads, *returned, *lengths)
            RESULTS.add(f"kinds/{name}", results.get("kinds", {}).get(name, {}) | measured, **about)
    RESULTS.add("ratios", summarise(RESULTS.figures()), **about)


if __name__ == "__main__":
    main()
