"""The same processor seconds on one thread for nanoGPT's and nanochat's recipes and ours, on the same tokens: `speedrun_cpu.py --part texts`.

    text ─corpus, tokens stages─▶ shards ─┬─▶ ours: lmforge.train.loop.train
                                          └─▶ train.bin, rows.npz ─▶ nanoGPT's model.py, nanochat's gpt.py and optim.py, in a Python of theirs

Each side's code for network, optimizer and rates is its own; the loops around them are here, because neither trains by the clock. A few
steps are timed first and not counted; the number of steps follows from them, and with it the schedule. Nobody's validation is counted. All
see our byte-pair vocabulary of 4,096 (nanoGPT's and nanochat's own, 50,257 and 32,768 tokens, would leave most of so short a training to the
output matrix), the same context and the same validation rows. nanochat's rows are cut from one stream, as the others', not packed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CONTEXT, VOCABULARY, VALID_TOKENS = 256, 4096, 65_536
NANOGPT_SIZES = {"4 × 128": (4, 4, 128), "4 × 192": (4, 6, 192), "6 × 256": (6, 4, 256)}  # layers, heads, width
NANOCHAT_DEPTHS = (2, 3, 4)  # width 64 a layer
NANOCHAT_BATCH = 4096  # tokens; its script for CPUs states 16,384 for thirty minutes of a faster machine
TIMED = 6  # steps that are timed beforehand; the first two warm up and compile


def steps_within(seconds: float, step: Any) -> int:
    """How many steps fit into the processor time."""
    times = []
    for index in range(TIMED):
        started = time.process_time()
        step(index)
        times.append(time.process_time() - started)
    return max(20, int(seconds / np.median(times[2:])))


def rows_at(stream: Any, context: int, rows: int, generator: Any) -> Any:
    """Random rows of the stream: inputs and targets."""
    import torch

    starts = torch.randint(len(stream) - context - 1, (rows,), generator=generator)
    cut = torch.stack([torch.from_numpy(stream[start : start + context + 1].astype(np.int64)) for start in starts.tolist()])
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


def nanogpt(folder: str, data: Path, size: str, seconds: float) -> dict[str, Any]:
    """Its CPU command's settings (README): batch 12, AdamW, 1e-3 falling to 1e-4, warm-up of 100 steps, beta2 0.99."""
    sys.path.insert(0, folder)
    import torch

    from model import GPT, GPTConfig

    layers, heads, width = NANOGPT_SIZES[size]
    stream = np.memmap(data / "train.bin", dtype=np.uint16, mode="r")
    peak, least, warmup = 1e-3, 1e-4, 100

    def start() -> tuple[Any, Any, Any]:
        torch.manual_seed(1337)
        model = GPT(GPTConfig(n_layer=layers, n_head=heads, n_embd=width, block_size=CONTEXT, vocab_size=VOCABULARY, dropout=0.0, bias=False))
        return model, model.configure_optimizers(0.1, peak, (0.9, 0.99), "cpu"), torch.Generator().manual_seed(1)

    model, optimizer, generator = start()

    def step(_index: int) -> None:
        _, loss = model(*rows_at(stream, CONTEXT, 12, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    steps = steps_within(seconds, step)
    model, optimizer, generator = start()
    began = time.process_time()
    for index in range(steps):
        progress = (index - warmup) / max(1, steps - warmup)
        rate = peak * (index + 1) / (warmup + 1) if index < warmup else least + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - least)
        for group in optimizer.param_groups:
            group["lr"] = rate
        step(index)
    spent = time.process_time() - began
    model.eval()

    def nats(inputs: Any, targets: Any) -> float:
        _, mean = model(inputs, targets)
        return float(mean) * int((targets >= 0).sum())

    return {"steps": steps, "tokens": steps * 12 * CONTEXT, "cpu_seconds": spent, "nats": validated(data, nats),
            "parameters": sum(p.numel() for p in model.parameters())}


def nanochat(folder: str, data: Path, size: str, seconds: float) -> dict[str, Any]:
    """base_train.py's rules: rates by the root of the batch, weight decay by batch and horizon, warm-up 40, warm-down 65%, momentum 0.85 to 0.97."""
    sys.path.insert(0, folder)
    import torch
    from nanochat.gpt import GPT, GPTConfig

    depth = int(size)
    stream = np.memmap(data / "train.bin", dtype=np.uint16, mode="r")
    batch = 2**19

    def make(layers: int, on: str = "cpu") -> Any:
        with torch.device("meta"):
            model = GPT(GPTConfig(sequence_len=CONTEXT, vocab_size=VOCABULARY, n_layer=layers, n_head=layers, n_kv_head=layers, n_embd=64 * layers,
                                  window_pattern="L"))
        return model if on == "meta" else model.to_empty(device="cpu")

    def scaling(model: Any) -> int:
        counts = model.num_scaling_params()
        return int(counts["transformer_matrices"] + counts["lm_head"])

    def start(steps: int) -> tuple[Any, Any, Any, float]:
        torch.manual_seed(42)
        model = make(depth)
        model.init_weights()
        scale = (NANOCHAT_BATCH / batch) ** 0.5
        horizon = steps * NANOCHAT_BATCH
        decay = 0.28 * scale * (12 * scaling(make(12, "meta")) / horizon)
        decay = min(decay, 0.28)  # the rule is for horizons near the compute-optimal one; so short a training would get a decay above 1
        optimizer = model.setup_optimizer(unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, scalar_lr=0.5 * scale, matrix_lr=0.02 * scale,
                                          weight_decay=decay)
        return model, optimizer, torch.Generator().manual_seed(1), decay

    model, optimizer, generator, decay = start(1000)

    def step(_index: int) -> None:
        inputs, targets = rows_at(stream, CONTEXT, NANOCHAT_BATCH // CONTEXT, generator)
        model(inputs, targets).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)

    steps = steps_within(seconds, step)
    model, optimizer, generator, decay = start(steps)
    falls = round(0.65 * steps)
    began = time.process_time()
    for index in range(steps):
        left = (steps - index) / falls
        multiplier = (index + 1) / 40 if index < 40 else 1.0 if index <= steps - falls else left + (1 - left) * 0.05
        momentum = (0.85 + 0.12 * index / 400 if index < 400 else 0.97 if index < steps - falls else 0.97 * left + 0.90 * (1 - left))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = momentum, decay * 0.5 * (1 + math.cos(math.pi * index / steps))
        step(index)
    spent = time.process_time() - began
    return {"steps": steps, "tokens": steps * NANOCHAT_BATCH, "cpu_seconds": spent,
            "nats": validated(data, lambda inputs, targets: float(model(inputs, targets, loss_reduction="sum"))),
            "parameters": sum(p.numel() for p in model.parameters()), "dtype": os.environ.get("NANOCHAT_DTYPE", "float32")}


def validated(data: Path, nats: Any) -> float:
    """The sum over the validation rows."""
    import torch

    rows = np.load(data / "rows.npz")
    inputs, targets = torch.from_numpy(rows["inputs"]), torch.from_numpy(rows["targets"])
    with torch.no_grad():
        return sum(nats(inputs[first : first + 16], targets[first : first + 16]) for first in range(0, len(inputs), 16))


def corpora(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes of the texts."""
    data = Path(os.environ.get("LMFORGE_DATA") or HERE.parents[1] / "shared" / "data") / "pretrain"
    english = [{"kind": "jsonl", "path": str(data / name), "genre": genre} for name, genre in
               (("stories", "stories"), ("encyclopedia/wikipedia_squad_train_articles.jsonl.gz", "encyclopedia"))]
    return {"python-library": {"sources": [{"kind": "python-library", "genre": "code"}]}, "english": {"sources": english}}


def prepare(name: str, corpus: dict[str, Any], folder: Path) -> Path:
    """Shards, the same as one file for the peers, and the validation rows."""
    import torch

    from lmforge.corpus.build import build_corpus
    from lmforge.recipe import parse_recipe
    from lmforge.tokens.build import build_tokens
    from lmforge.tokens.shards import Shards
    from lmforge.train.loop import validation_rows

    place = folder / name
    tokens = {"vocab_size": VOCABULARY, "context": CONTEXT, "sample_bytes": 16_000_000}
    recipe = parse_recipe({"corpus": {**corpus, "analyse_bytes": 0}, "tokens": tokens})
    build_corpus(recipe, place / "corpus")
    build_tokens(recipe, place / "corpus", place / "tokens")
    shards, held_out = Shards.open(place / "tokens", "train"), Shards.open(place / "tokens", "valid")
    shards.read(0, shards.tokens).astype(np.uint16).tofile(place / "train.bin")
    inputs, targets = validation_rows(held_out, CONTEXT, VALID_TOKENS)
    np.savez(place / "rows.npz", inputs=inputs.numpy(), targets=targets.to(torch.int64).numpy())
    return place


def valid_bytes(place: Path) -> int:
    """UTF-8 bytes of the text that the validation rows predict."""
    from lmforge.tokens.bpe import Tokenizer

    tokenizer = Tokenizer.load(place / "tokens" / "tokenizer.json")
    targets = np.load(place / "rows.npz")["targets"]
    return sum(len(tokenizer.token_bytes(token)) for token in targets[targets >= 0].tolist())


def theirs(python: Path, side: str, checkout: Path, data: Path, size: str, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """One training of a peer, in its own process."""
    command = [python, __file__, side, str(checkout.absolute()), str(data), size, str(seconds)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {side} {size}: {done.stderr[-800:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def texts(arguments: Any, folder: Path) -> dict[str, Any]:
    """All sides on each text."""
    from speedrun_cpu import run_ours

    found: dict[str, Any] = {"seconds": arguments.seconds}
    for name, corpus in corpora(folder).items():
        if arguments.text and name not in arguments.text:
            continue
        place = prepare(name, corpus, folder)
        counted = valid_bytes(place)
        rows = []

        def add(side: str, size: str, row: dict[str, Any], rows: list[dict[str, Any]] = rows, counted: int = counted) -> None:
            rows.append({"side": side, "size": size, **row, "bits_per_byte": row["nats"] / math.log(2) / counted})
            print(json.dumps(rows[-1]), flush=True)

        ours = {"train.threads": 1, "train.validate_tokens": VALID_TOKENS}
        timed = run_ours(HERE / "texts.toml", place / "tokens", {**ours, "train.steps": 12, "train.warmup": 2}, 1, folder / f"{name}-timed")
        steps = int(arguments.seconds / timed["cpu_seconds"] * 12)
        row = run_ours(HERE / "texts.toml", place / "tokens", {**ours, "train.steps": steps}, 1, folder / f"{name}-ours")
        add("ours", "bench/texts.toml", {**row, "nats": row["loss"] * counted})
        for size in NANOGPT_SIZES:
            add("nanoGPT", size, theirs(arguments.peer_python, "nanogpt", arguments.peer, place, size, arguments.seconds, {}))
        for depth in NANOCHAT_DEPTHS:
            for kind in arguments.dtype:
                add("nanochat", f"depth {depth}", theirs(arguments.peer_python, "nanochat", arguments.nanochat, place, str(depth),
                                                         arguments.seconds, {"NANOCHAT_DTYPE": kind}))
        best = {side: min(row["bits_per_byte"] for row in rows if row["side"] == side) for side in ("ours", "nanoGPT", "nanochat")}
        found[name] = {"rows": rows, "best": best, "fewer_bits_than": {side: 1 - best["ours"] / best[side] for side in ("nanoGPT", "nanochat")}}
        print(json.dumps(found[name]["fewer_bits_than"]), flush=True)
    return found


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, sys.stderr  # what the peers print is not the answer
    result = {"nanogpt": nanogpt, "nanochat": nanochat}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    out.write(json.dumps(result) + "\n")
