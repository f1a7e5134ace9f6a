"""Every kind of attention in a whole model of 6 layers: a training step and decoding, from 1,024 to 30,000 tokens of context.

    python bench/attention.py                                   (all kinds, about 8 minutes on two cores; --kinds full sparse … for some)
    python bench/attention.py --peers .peers/venv/bin/python    (one layer of Longformer, BigBird and Reformer in `transformers`, beside ours)

Each kind is measured in a process of its own, lengths in ascending order; memory is the process's peak above what it held before its
first step. `full` is the library's own scaled_dot_product_attention. The exponent is log(seconds at 30,000 / at 8,192) / log(30,000/8,192).
The floor is the step's operations (`cost.training_flops_per_token`) at this machine's measured matrix peak.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LENGTHS = (1024, 2048, 4096, 8192, 16_384, 30_000)
RESULTS = Path(__file__).parent / "results" / "attention.json"
SHAPE = {"vocab_size": 512, "context": 30_000, "layers": 6, "d_model": 128, "heads": 2, "kv_heads": 2, "d_ff": 512, "norm": "layernorm"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {}, "sparse": {"attention": ("sparse",)}, "sparse-recompute": {"attention": ("sparse",), "recompute": True},
    "sparse-reversible": {"attention": ("sparse",), "residual": "reversible"}, "linear": {"attention": ("linear",)},
    "window": {"attention": ("window",)}, "strided": {"attention": ("strided",)}, "pooled": {"attention": ("pooled",)},
    "lsh": {"attention": ("lsh",)},
}  # fmt: skip
PEERS = ("longformer", "bigbird", "reformer")


def child(kind: str, threads: int, lengths: list[int]) -> dict[str, Any]:
    """All lengths of one kind: seconds of a training step, its peak bytes, seconds of a decoded token."""
    import torch

    from lmforge.model.attention import KVCache
    from lmforge.model.cost import training_flops_per_token
    from lmforge.model.gpt import GPT, GPTConfig

    torch.set_num_threads(threads)
    model = GPT(GPTConfig(**SHAPE, **KINDS[kind]))
    model.initialise(1)
    model.loss(torch.zeros(1, 64, dtype=torch.long), torch.zeros(1, 64, dtype=torch.long)).backward()
    clock = time.process_time if threads == 1 else time.perf_counter  # one thread: processor seconds, right on a shared machine too
    before, rows = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
    for length in lengths:
        tokens = torch.randint(0, 512, (1, length))
        times = []
        for _ in range(1 if kind == "full" and length > 16_000 else 2 if length > 16_000 else 3 if length > 4000 else 4):
            started = clock()
            model.loss(tokens, tokens).backward()
            times.append(clock() - started)
            model.zero_grad()
        rows[str(length)] = {
            "step_seconds": statistics.median(times[1:] or times), "flops": length * training_flops_per_token(model.config, length),
            "peak_bytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024,
        }  # fmt: skip
        if "-" not in kind and length in (1024, 30_000):
            with torch.inference_mode():
                cache = KVCache(model.config, 1, 30_000, torch.device("cpu"))
                model.hidden(tokens[:, : length - 101], cache)
                times = []
                for step in range(100):
                    started = clock()
                    model(tokens[:, step : step + 1], cache)
                    times.append(clock() - started)
            rows[str(length)] |= {"decode_seconds": statistics.median(times[20:]), "cache_bytes": cache.nbytes}
    return rows


def peer_child(name: str, threads: int) -> dict[str, float]:
    """Seconds of forward and backward of one layer of a peer: width 128, 2 heads, a window (or chunks) of 256."""
    import torch
    import transformers as t

    torch.set_num_threads(threads)
    common = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 512, "vocab_size": 512}
    found = {}
    for length in (1024, 4096, 16_384):
        if name == "longformer":
            model: Any = t.LongformerModel(t.LongformerConfig(**common, attention_window=512, max_position_embeddings=length + 2))
        elif name == "bigbird":
            model = t.BigBirdModel(t.BigBirdConfig(**common, block_size=64, num_random_blocks=1, max_position_embeddings=length + 2))
        else:
            model = t.ReformerModel(t.ReformerConfig(
                vocab_size=512, hidden_size=128, num_attention_heads=2, attention_head_size=64, feed_forward_size=512, attn_layers=["lsh"],
                num_hashes=4, lsh_attn_chunk_length=64, axial_pos_embds=False, max_position_embeddings=length, is_decoder=True,
                num_buckets=2 * (length // 64)))  # fmt: skip
        model.train()
        tokens = torch.randint(5, 500, (1, length))
        times = []
        for _ in range(4 if length < 16_000 else 2):
            started = time.perf_counter()
            model(tokens).last_hidden_state.sum().backward()
            times.append(time.perf_counter() - started)
        found[str(length)] = statistics.median(times[1:])
    return found


def our_layer(kind: str, threads: int) -> dict[str, float]:
    """The same of one of our blocks."""
    import torch

    from lmforge.model.gpt import GPT, GPTConfig

    torch.set_num_threads(threads)
    found = {}
    for length in (1024, 4096, 16_384):
        shape = SHAPE | {"layers": 1, "context": length, "window": 256, "lsh_span": 64}
        model = GPT(GPTConfig(**shape, **KINDS[kind]))  # type: ignore[arg-type]
        model.initialise(1)
        tokens = torch.randint(5, 500, (1, length))
        times = []
        for _ in range(4 if length < 16_000 else 3):
            started = time.perf_counter()
            model.hidden(tokens).sum().backward()
            times.append(time.perf_counter() - started)
        found[str(length)] = statistics.median(times[1:])
    return found


def flex_forward(threads: int) -> dict[str, Any]:
    """Forward of a window of 256 alone, width 128, 2 heads: compiled FlexAttention (it has no backward on CPUs) and ours."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from lmforge.model.banded import banded_attention, visible

    torch.set_num_threads(threads)
    compiled, found = torch.compile(flex_attention), {}
    none, seen = torch.empty(1, 2, 0, 64), torch.empty(0, dtype=torch.long)
    for length in (4096, 16_384):
        q, k, v = (torch.randn(1, 2, length, 64) for _ in range(3))
        mask = create_block_mask(visible(length, 256, seen), None, None, length, length, device="cpu")
        for name, call in (("flex", lambda q=q, k=k, v=v, mask=mask: compiled(q, k, v, block_mask=mask)),
                           ("ours", lambda q=q, k=k, v=v: banded_attention(q, k, v, 256, none, none, seen))):  # fmt: skip
            times = []
            with torch.no_grad():
                for _ in range(7):
                    started = time.perf_counter()
                    call()
                    times.append(time.perf_counter() - started)
            found.setdefault(name, {})[str(length)] = statistics.median(times[1:])
    return found


def ask(python: str, *arguments: str) -> Any:
    """Run this file again as a child and read its answer."""
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def matrix_peak(threads: int) -> float:
    """FLOP/s of the best of several large fp32 products."""
    import torch

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    times = []
    for _ in range(8):
        started = clock()
        a @ b
        times.append(clock() - started)
    return 2 * 1536**3 / min(times)


def summarise(results: dict[str, Any]) -> None:
    """Ratios from what was measured so far; prints them."""
    kinds, full = results["kinds"], results["kinds"].get("full", {})
    results["ratios"] = {}
    for kind, rows in kinds.items():
        if "failed" in rows or not {"8192", "30000"} <= set(rows):
            continue
        last = rows["30000"]
        ratios = {"exponent_8192_30000": math.log(last["step_seconds"] / rows["8192"]["step_seconds"]) / math.log(30_000 / 8192),
                  "share_of_matrix_peak": last["flops"] / last["step_seconds"] / results["matrix_peak_flops"]}
        if "30000" in full:
            whole = full["30000"]
            ratios |= {"step_faster_than_full": whole["step_seconds"] / last["step_seconds"],
                       "memory_of_full": last["peak_bytes"] / whole["peak_bytes"]}
        if "decode_seconds" in last:
            ratios["decode_30000_over_1024"] = last["decode_seconds"] / rows["1024"]["decode_seconds"]
        results["ratios"][kind] = ratios
        words = ", ".join(f"{name} {value:.3f}" for name, value in ratios.items())
        print(f"{kind:18s} step {last['step_seconds']:6.2f} s, {last['peak_bytes'] / 1e6:6.0f} MB; {words}", flush=True)


def main() -> None:
    """Measure, add to the results, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(LENGTHS), help="with 1024, 8192 and 30000 among them")
    parser.add_argument("--peers", help="a Python that has transformers")
    parser.add_argument("--threads", type=int, default=1, help="1 times processor seconds, more the clock on the wall")
    parser.add_argument("--child", choices=KINDS)
    parser.add_argument("--peer-child", choices=PEERS)
    parser.add_argument("--layer", choices=KINDS)
    parser.add_argument("--flex", action="store_true")
    arguments = parser.parse_args()
    if arguments.child or arguments.peer_child or arguments.layer or arguments.flex:
        answer: Any
        if arguments.child:
            answer = child(arguments.child, arguments.threads, arguments.lengths)
        elif arguments.layer:
            answer = our_layer(arguments.layer, arguments.threads)
        else:
            answer = flex_forward(arguments.threads) if arguments.flex else peer_child(arguments.peer_child, arguments.threads)
        print(json.dumps(answer))
        return
    from lmforge.record import code_version, machine, write_atomic

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"kinds": {}, "peers": {}}
    results |= {"command": "python bench/attention.py", "machine": machine(), "code": code_version(), "threads": arguments.threads, "shape": SHAPE,
                "matrix_peak_flops": matrix_peak(arguments.threads)}
    threads = ("--threads", str(arguments.threads))
    lengths = ("--lengths", *map(str, arguments.lengths))
    if arguments.peers:
        for name in PEERS:
            results["peers"][name] = ask(arguments.peers, "--peer-child", name, *threads)
        for kind in ("window", "lsh", "full", "sparse"):
            results["peers"][f"ours-{kind}"] = ask(sys.executable, "--layer", kind, *threads)
        results["peers"]["window_forward"] = ask(sys.executable, "--flex", *threads)
        print(json.dumps(results["peers"], indent=1))
    else:
        for kind in arguments.kinds:
            results["kinds"][kind] = ask(sys.executable, "--child", kind, *threads, *lengths)
            write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
    summarise(results)
    write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
