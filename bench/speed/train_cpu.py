"""Training speed on this CPU beside nanoGPT, litgpt and transformers' Trainer: same architecture, batch, threads,
alternately in one run.

    python -m bench.speed.train_cpu --peer .peers/nanoGPT --peer-python .peers/venv/bin/python --litgpt-python
    .peers/litgpt/bin/python

Each way (a side and a precision, such as ours-bf16) is a process of its own that waits while the others are timed. Ours
and nanoGPT start from the same weights, and these two see the same batches, so their losses can be compared step by
step; litgpt has rotary for learned positions, and the Trainer's GPT-2 has biases. nanoGPT trains in fp32 on a CPU:
nanogpt-bf16 is its step under autocast, which it does not do itself. The best way of each side counts. The floor is the
matrix products alone at this machine's measured fp32 peak, which bfloat16 can pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import Results
from bench.peers.training_steps import OTHERS, SIZES, WAYS, ours, worker

RESULTS = Results("train_cpu")

GROUPS = {  # of operations by name, for the profile
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_softmax",
        "aten::_softmax_backward_data",
    ),
    "activation": ("aten::gelu", "aten::gelu_backward"),
    "normalisation": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "loss beside its products": (
        "aten::_log_softmax",
        "aten::gather",
        "aten::scatter_add_",
        "aten::exp_",
        "aten::sum",
        "_LinearCrossEntropy",
    ),
    "optimizer and clipping": (
        "aten::_fused_adamw_",
        "aten::_foreach_norm",
        "aten::_foreach_mul_",
        "aten::linalg_vector_norm",
    ),
    "copies, casts and sums": (
        "aten::copy_",
        "aten::add",
        "aten::add_",
        "aten::mul",
        "aten::mul_",
        "aten::cat",
        "aten::fill_",
        "aten::zero_",
        "aten::embedding",
        "aten::embedding_dense_backward",
    ),
}


def profile(size: str, vocab: int, mode: str) -> dict[str, float]:
    """Shares of the time of our step on one thread, by kind of operation; what no operation accounts for is Python's
    and autograd's."""
    import torch

    step = ours(size, vocab, 1, mode)
    step(0)
    step(1)
    with torch.profiler.profile() as found:
        started = time.perf_counter()
        step(2)
        whole = time.perf_counter() - started
    own = {each.key: each.self_cpu_time_total / 1e6 for each in found.key_averages()}
    shares = {group: sum(own.get(name, 0.0) for name in names) / whole for group, names in GROUPS.items()}
    return shares | {"Python, autograd and the rest": 1 - sum(shares.values())}


def matrix_peak(threads: int) -> float:
    """FLOP/s of the best of several large fp32 products."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    times = []
    for _ in range(12):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 1536**3 / min(times)


def flops_per_token(size: str, vocab: int) -> float:
    """Forward and backward: 6 per matrix weight, and 6·T·D a layer for causal attention (half of 12·T·D)."""
    width, layers, context, _, _ = SIZES[size]
    return 6 * (layers * 12 * width * width + vocab * width) + layers * 6 * context * width


# long: one comparison, told from its processes to its ratios
def measure(size: str, vocab: int, arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """All ways in turn, `rounds` times."""
    ways, threads, peer, rounds = arguments.way or WAYS, arguments.threads, arguments.peer, arguments.rounds
    command = [
        "-m",
        "bench.speed.train_cpu",
        "--size",
        size,
        "--vocab",
        str(vocab),
        "--threads",
        str(threads),
        "--peer",
        str(peer),
        "--worker",
    ]
    workers = {}
    for way in ways:  # one after another: each measures its fastest way alone
        python = {"litgpt": arguments.litgpt_python, "trainer": arguments.peer_python}.get(
            way.split("-")[0], Path(sys.executable)
        )
        workers[way] = process = subprocess.Popen(
            [python, *command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n", f"{way} did not start"
    times: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    peaks = []
    for turn in range(rounds + 1):
        peaks.append(matrix_peak(threads))
        for way, process in workers.items():
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            losses[way] += answer["losses"]
            if turn:  # the first round warms up, and compiles
                times[way].append(answer["seconds"] / steps)
    for process in workers.values():
        assert process.stdin
        process.stdin.close()
        process.wait()
    _, _, context, _, rows = SIZES[size]
    speed = {way: rows * context / statistics.median(t) for way, t in times.items()}
    sides = list(dict.fromkeys(way.split("-")[0] for way in ways))
    best = {side: max((way for way in ways if way.startswith(side)), key=lambda way: speed[way]) for side in sides}

    def ratio(a: str, b: str) -> dict[str, float]:
        found = [theirs / mine for mine, theirs in zip(times[a], times[b], strict=True)]
        return {"ratio": statistics.median(found), "low": min(found), "high": max(found)}

    peak = max(peaks)
    pairs = [
        (way, way.replace("ours", "nanogpt"))
        for way in ways
        if way.startswith("ours") and way.replace("ours", "nanogpt") in ways
    ]
    apart = {
        mine: max(abs(a - b) / b for a, b in zip(losses[mine], losses[theirs], strict=True)) for mine, theirs in pairs
    }
    return {
        "size": size,
        "vocab": vocab,
        "tokens_per_second": {way: round(value) for way, value in speed.items()},
        "best": best,
        "best_over": {side: ratio(best["ours"], best[side]) for side in sides if side != "ours"},
        "same_precision": {
            theirs: ratio(mine, theirs)
            for mine in ways
            if mine.startswith("ours")
            for theirs in ways
            if theirs != mine and theirs.split("-")[1] == mine.split("-")[1]
        },
        "matrix_peak_gflops": peak / 1e9,
        "share_of_peak": {way: value * flops_per_token(size, vocab) / peak for way, value in speed.items()},
        "largest_relative_loss_difference_to_nanogpt": apart,
    }


# long: options, then one branch each
def main() -> None:
    """Measure every size, print a table, write bench/results/train_cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=Path(".peers/nanoGPT"))
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=Path(".peers/venv/bin/python"),
        help="a Python with transformers and accelerate",
    )
    parser.add_argument(
        "--litgpt-python", type=Path, default=Path(".peers/litgpt/bin/python"), help="a Python with litgpt"
    )
    parser.add_argument("--way", choices=[*WAYS, *OTHERS], action="append", help="default: all but the compiled ones")
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument(
        "--vocab", type=int, action="append", help="default: 65 (characters, as nanoGPT's CPU command) and 4096 (BPE)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="steps a turn (default: by size)")
    parser.add_argument(
        "--profile", action="store_true", help="instead: where the time of our step goes, on one thread"
    )
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if not (arguments.peer / "model.py").is_file():
        sys.exit(
            f"{arguments.peer}/model.py: not there; put a checkout of karpathy/nanoGPT there or name it with --peer"
        )
    vocabularies = arguments.vocab or [65, 4096]
    if arguments.worker:
        worker(arguments.worker, arguments.size[0], vocabularies[0], arguments.threads, arguments.peer)
        return
    if arguments.profile:
        for size in arguments.size or SIZES:
            for mode in ("fp32", "bf16"):
                shares = profile(size, vocabularies[-1], mode)
                print(
                    f"{size} vocab {vocabularies[-1]} {mode}: "
                    + ", ".join(f"{group} {share:.0%}" for group, share in shares.items()),
                    flush=True,
                )
        return
    commit = arguments.peer / "COMMIT"
    peer = "karpathy/nanoGPT " + (commit.read_text().strip() if commit.exists() else "unknown commit")
    for size in arguments.size or SIZES:
        for vocab in vocabularies:
            row = measure(size, vocab, arguments, arguments.steps or {"d128": 12, "d384": 2, "d768": 1}[size])
            RESULTS.add(f"{size} vocabulary {vocab}", row, threads=arguments.threads, peer=peer)
            rates = ", ".join(
                f"{way} {rate:,} ({row['share_of_peak'][way]:.0%})" for way, rate in row["tokens_per_second"].items()
            )
            beside = ", ".join(
                f"{side} {found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})"
                for side, found in row["best_over"].items()
            )
            print(
                f"{size} vocab {vocab}: tok/s (share of the fp32 peak) {rates}; {row['best']['ours']} over the best "
                f"of {beside}",
                flush=True,
            )


if __name__ == "__main__":
    main()
