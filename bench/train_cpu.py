"""Training speed on this CPU beside nanoGPT, same architecture, same batch, same threads, alternately in one run.

    python bench/train_cpu.py --peer .peers/nanoGPT        (a checkout of karpathy/nanoGPT; not part of this project)

Each way (ours eager, ours compiled, nanoGPT eager, nanoGPT compiled) is a process of its own that waits while the others are timed. All
start from the same weights and see the same batches, so the losses can be compared step by step. The best way of each side counts.
The floor is the matrix products alone at this machine's measured fp32 peak.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES = {  # name: d_model, layers, context, heads, rows
    "d128": (128, 4, 256, 4, 16),
    "d384": (384, 6, 256, 6, 16),
    "d768": (768, 12, 512, 12, 4),
}
RATE, DECAY, BETAS, CLIP = 6e-4, 0.1, (0.9, 0.95), 1.0


def batches(vocab: int, rows: int, context: int, step: int) -> Any:
    """The same learnable batch for everybody: each token follows from the one before it, with noise."""
    import torch

    generator = torch.Generator().manual_seed(1000 + step)
    noise = torch.randint(0, 7, (rows, context + 1), generator=generator).cumsum(1)
    tokens = (noise * 17 + torch.randint(0, vocab, (rows, 1), generator=generator)) % vocab
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def our_network(size: str, vocab: int) -> Any:
    """nanoGPT's architecture as an lmforge network: learned positions, LayerNorm without bias, GELU, tied output."""
    from lmforge.model.gpt import GPT, GPTConfig

    width, layers, context, heads, _ = SIZES[size]
    config = GPTConfig(vocab_size=vocab, context=context, layers=layers, d_model=width, heads=heads, kv_heads=heads, d_ff=4 * width,
                       activation="gelu", norm="layernorm", positions="learned")
    model = GPT(config)
    model.initialise(1)
    return model


def ours(size: str, vocab: int, threads: int, compiled: bool) -> Any:
    """A function step(i) → loss that runs our training step."""
    import torch

    from lmforge.allocator import keep_freed_memory
    from lmforge.parallel.replicas import Replicas
    from lmforge.recipe import parse_recipe
    from lmforge.train.fastest import choose, describe
    from lmforge.train.optim import build_optimizers

    keep_freed_memory()
    _, _, context, _, rows = SIZES[size]
    model = our_network(size, vocab)
    recipe = parse_recipe({"tokens": {"context": context}, "train": {
        "threads": threads, "compile": "on" if compiled else "off", "peak_lr": RATE, "weight_decay": DECAY, "precision": "fp32"}})
    way = choose(recipe, model, torch.device("cpu"), rows, 1000)
    networks = Replicas(model, way.replicas, way.threads)
    optimizers = build_optimizers(model, recipe.train)
    compiled_loss = torch.compile(model.loss) if way.compiled else None
    piece = max(1, way.micro_batch_tokens // context)
    print(f"ours: {describe(way)}", flush=True)

    def gradients(network: Any, inputs: Any, targets: Any, mine: range) -> float:
        total = torch.zeros(())
        for first in range(mine.start, mine.stop, piece):
            part = slice(first, min(first + piece, mine.stop))
            loss = (compiled_loss or network.loss)(inputs[part], targets[part]) / inputs.numel()
            loss.backward()
            total += loss.detach()
        return float(total)

    def step(index: int) -> float:
        inputs, targets = batches(vocab, rows, context, index)
        total = sum(networks.run(lambda network, mine: gradients(network, inputs, targets, mine), range(rows)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return total

    return step


def peers(size: str, vocab: int, threads: int, compiled: bool, directory: Path) -> Any:
    """A function step(i) → loss that runs nanoGPT's own model and optimizer, from our initial weights."""
    import torch

    spec = importlib.util.spec_from_file_location("nanogpt_model", directory / "model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    width, layers, context, heads, rows = SIZES[size]
    model = module.GPT(module.GPTConfig(block_size=context, vocab_size=vocab, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0,
                                        bias=False))
    names = {"embed": "transformer.wte", "learned_positions": "transformer.wpe", "norm": "transformer.ln_f"}
    inner = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "ff_norm": "ln_2", "ff.up": "mlp.c_fc",
             "ff.down": "mlp.c_proj"}
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in our_network(size, vocab).named_parameters():
            stem = name.removesuffix(".weight")
            if stem.startswith("blocks."):
                _, layer, part = stem.split(".", 2)
                stem = f"transformer.h.{layer}.{inner[part]}"
            else:
                stem = names[stem]
            theirs[f"{stem}.weight"].copy_(tensor)
    torch.set_num_threads(threads)
    optimizer = model.configure_optimizers(DECAY, RATE, BETAS, "cpu")
    run = torch.compile(model) if compiled else model

    def step(index: int) -> float:
        inputs, targets = batches(vocab, rows, context, index)
        _, loss = run(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def worker(way: str, size: str, vocab: int, threads: int, peer: Path) -> None:
    """Answer each line `STEPS` on stdin with seconds and losses on stdout."""
    side, mode = way.split("-")
    out = sys.stdout
    sys.stdout = sys.stderr
    compiled = mode == "compiled"
    step = ours(size, vocab, threads, compiled) if side == "ours" else peers(size, vocab, threads, compiled, peer)
    out.write("ready\n")
    out.flush()
    done = 0
    for line in sys.stdin:
        started = time.perf_counter()
        losses = [step(done + i) for i in range(int(line))]
        out.write(json.dumps({"seconds": time.perf_counter() - started, "losses": losses}) + "\n")
        out.flush()
        done += int(line)


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


def measure(size: str, vocab: int, threads: int, peer: Path, rounds: int, steps: int) -> dict[str, Any]:
    """All four ways in turn, `rounds` times."""
    ways = ["ours-eager", "peer-eager", "ours-compiled", "peer-compiled"]
    command = [sys.executable, __file__, "--size", size, "--vocab", str(vocab), "--threads", str(threads), "--peer", str(peer), "--worker"]
    workers = {}
    for way in ways:  # one after another: each measures its fastest way alone
        workers[way] = process = subprocess.Popen([*command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    best = {side: max((way for way in ways if way.startswith(side)), key=lambda way: speed[way]) for side in ("ours", "peer")}
    ratios = [b / a for a, b in zip(times[best["ours"]], times[best["peer"]], strict=True)]
    peak = max(peaks)
    apart = max(abs(a - b) / b for a, b in zip(losses[best["ours"]], losses[best["peer"]], strict=True))
    return {
        "size": size, "vocab": vocab, "tokens_per_second": {way: round(value) for way, value in speed.items()}, "best": best,
        "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
        "matrix_peak_gflops": peak / 1e9,
        "share_of_peak": {side: speed[way] * flops_per_token(size, vocab) / peak for side, way in best.items()},
        "largest_relative_loss_difference": apart, "last_losses": {way: values[-1] for way, values in losses.items()},
    }


def main() -> None:
    """Measure every size, print a table, write bench/results/train_cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=Path(".peers/nanoGPT"))
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--vocab", type=int, action="append", help="default: 65 (characters, as nanoGPT's CPU command) and 4096 (BPE)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="steps a turn (default: by size)")
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if not (arguments.peer / "model.py").is_file():
        sys.exit(f"{arguments.peer}/model.py: not there; put a checkout of karpathy/nanoGPT there or name it with --peer")
    vocabularies = arguments.vocab or [65, 4096]
    if arguments.worker:
        worker(arguments.worker, arguments.size[0], vocabularies[0], arguments.threads, arguments.peer)
        return
    from lmforge.record import code_version, machine, write_atomic

    path = Path(__file__).parent / "results" / "train_cpu.json"
    about = {"machine": machine(), "code": code_version(), "threads": arguments.threads}
    earlier = json.loads(path.read_text()) if path.exists() else {}
    kept = earlier.get("results", []) if earlier.get("machine") == about["machine"] else []  # sizes may be measured one by one
    results = []
    for size in arguments.size or SIZES:
        for vocab in vocabularies:
            row = measure(size, vocab, arguments.threads, arguments.peer, arguments.rounds,
                          arguments.steps or {"d128": 12, "d384": 2, "d768": 1}[size])
            results.append(row)
            share = row["share_of_peak"]
            print(f"{size} vocab {vocab}: ours {row['tokens_per_second'][row['best']['ours']]:,} tok/s ({row['best']['ours']}, "
                  f"{share['ours']:.0%} of peak), nanoGPT {row['tokens_per_second'][row['best']['peer']]:,} ({row['best']['peer']}, "
                  f"{share['peer']:.0%}); ratio {row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f}); losses within "
                  f"{row['largest_relative_loss_difference']:.1e}", flush=True)
    commit = arguments.peer / "COMMIT"
    peer = "karpathy/nanoGPT " + (commit.read_text().strip() if commit.exists() else "unknown commit")
    measured = {(row["size"], row["vocab"]): row for row in [*kept, *results]}
    whole = {"command": "python bench/train_cpu.py", **about, "peer": peer, "results": [measured[key] for key in sorted(measured)]}
    write_atomic(path, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
