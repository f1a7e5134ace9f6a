"""What each kind of attention costs in quality: the same model, text and steps, context 4,096.

    python -m bench.quality.attention_quality --tokens RUN/tokens --train-tokens 400000     (adds to
    bench/results/attention_quality.json; --kinds for some)

One table: bits per byte of held-out text, seconds of training, of a decoded token after 4,000, peak bytes. Each kind in
a process of its own.
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

from bench.harness import Results
from lmforge.allocator import keep_freed_memory

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "sparse": {"attention": ("sparse",)},
    "window": {"attention": ("window",)},
    "strided": {"attention": ("strided",)},
    "pooled": {"attention": ("pooled",)},
    "pooled-conv": {"attention": ("pooled",), "pooling": "conv"},
    "lsh": {"attention": ("lsh",)},
    "linear": {"attention": ("linear",)},
    "linear-learned": {"attention": ("linear",), "feature_map": "learned"},
}
CONTEXT, VALID_ROWS = 4096, 16
SHAPE = {
    "layers": 3,
    "d_model": 96,
    "heads": 3,
    "kv_heads": 3,
    "d_ff": 384,
    "norm": "layernorm",
    "activation": "relu2",
    "qk_norm": True,
}
RESULTS = Results("attention_quality")


def child(kind: str, directory: Path, train_tokens: int, seed: int) -> dict[str, float]:
    """Train one kind and measure it, on one thread."""
    import numpy as np
    import torch

    from lmforge.model.attention import KVCache
    from lmforge.model.gpt import GPT, GPTConfig
    from lmforge.recipe import Train
    from lmforge.tokens.bpe import Tokenizer
    from lmforge.tokens.shards import Shards
    from lmforge.train.optim import build_optimizers, rate, set_rate

    torch.set_num_threads(1)
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    lengths = torch.tensor([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    train, valid = Shards.open(directory, "train"), Shards.open(directory, "valid")

    def row(shards: Shards, step: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = int(np.random.default_rng((seed, step)).integers(0, shards.tokens - CONTEXT - 1))
        text = torch.from_numpy(np.asarray(shards.read(at, CONTEXT + 1)).astype(np.int64))[None]
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context=CONTEXT, **(SHAPE | KINDS[kind])))
    model.initialise(seed)
    optimizers = build_optimizers(model, Train(optimizer="muon", peak_lr=5e-3, matrix_lr=0.02, weight_decay=0.0))
    steps, started = train_tokens // CONTEXT, time.process_time()
    for step in range(steps):
        set_rate(optimizers, rate(step, steps, 20, 0.0))
        tokens, targets = row(train, step, seed)
        (model.loss(tokens, targets) / CONTEXT).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad(set_to_none=True)
    seconds, nats, count = time.process_time() - started, 0.0, 0
    with torch.inference_mode():
        for index in range(VALID_ROWS):
            tokens, targets = row(valid, index, 0)
            nats, count = nats + float(model.loss(tokens, targets)), count + int(lengths[targets].sum())
        cache, times = KVCache(1, CONTEXT, torch.device("cpu")), []
        model.hidden(tokens[:, :4000], cache)
        for index in range(4000, 4090):
            started = time.process_time()
            model(tokens[:, index : index + 1], cache)
            times.append(time.process_time() - started)
    return {
        "bits_per_byte": nats / math.log(2) / count,
        "train_seconds": seconds,
        "decode_seconds": statistics.median(times),
        "steps": steps,
        "cache_bytes": cache.nbytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Each kind in turn; adds to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--train-tokens", type=int, default=400_000)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="of the network and the order of the text; others than 1 stand under KIND@SEED",
    )
    parser.add_argument("--child", choices=KINDS)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command trains
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments.tokens, arguments.train_tokens, arguments.seed)))
        return
    RESULTS.add("shape", SHAPE | {"context": CONTEXT})
    for kind in arguments.kinds:
        command = [
            sys.executable,
            "-m",
            "bench.quality.attention_quality",
            "--tokens",
            str(arguments.tokens),
            "--train-tokens",
            str(arguments.train_tokens),
            "--seed",
            str(arguments.seed),
            "--child",
            kind,
        ]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        name = kind if arguments.seed == 1 else f"{kind}@{arguments.seed}"
        RESULTS.add(f"kinds/{name}", row | {"train_tokens": arguments.train_tokens})
        print(
            f"{kind:14s} {row['bits_per_byte']:.4f} bits/byte, {row['train_seconds']:.0f} s, "
            f"{1000 * row['decode_seconds']:.2f} ms/token, "
            f"{row['peak_bytes'] / 1e6:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
