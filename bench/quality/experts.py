"""Experts beside a dense network of equal active units, on the same text for the same steps: quality, balance, time of
a step.

    python -m bench.quality.experts --tokens RUN/tokens --steps 400        (a run's token shards; writes
    bench/results/experts.json)

8 experts of which 2 are active share 4 × the dense network's units. Steps alternate between the two networks, so both
see the same machine. Balance is the load of the fullest expert over the mean, of the worst layer: of single batches of
4,096 tokens, and of all batches of 20 steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from bench.harness import Results
from lmforge.allocator import keep_freed_memory
from lmforge.model.attention import ForwardContext
from lmforge.model.experts import Experts
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.plan.cost import active_parameters, flops_per_token, parameters
from lmforge.recipe import Train
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import Shards
from lmforge.train.optim import build_optimizers, rate, set_rate

RESULTS = Results("experts")

CONTEXT, ROWS, UNITS = 256, 16, 512


# long: one experiment, told from its data to its figures
def main() -> None:
    """Train both, alternating; evaluate both; write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command trains
    torch.set_num_threads(arguments.threads)
    tokenizer = Tokenizer.load(arguments.tokens / "tokenizer.json")
    lengths = torch.tensor([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    train, valid = Shards.open(arguments.tokens, "train"), Shards.open(arguments.tokens, "valid")

    def batch(shards: Shards, step: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        starts = np.random.default_rng((seed, step)).integers(0, shards.tokens - CONTEXT - 1, rows)
        text = torch.from_numpy(
            np.stack([np.asarray(shards.read(int(at), CONTEXT + 1)) for at in starts]).astype(np.int64)
        )
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    shape = {
        "vocab_size": tokenizer.vocab_size,
        "context": CONTEXT,
        "layers": 4,
        "d_model": 128,
        "heads": 4,
        "kv_heads": 4,
        "norm": "layernorm",
        "qk_norm": True,
    }
    configs = {
        "dense": GPTConfig(**shape, d_ff=UNITS),
        "experts": GPTConfig(**shape, d_ff=4 * UNITS, experts=8, experts_active=2),
    }  # type: ignore[arg-type]
    models = {name: GPT(config) for name, config in configs.items()}
    settings = Train(optimizer="adamw", peak_lr=2e-3, weight_decay=0.0)
    optimizers = {}
    for name, model in models.items():
        model.initialise(1)
        optimizers[name] = build_optimizers(model, settings)
    times: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    balances, windows, dropped = [], [], 0
    # tokens of each expert in these 20 steps
    taken = torch.zeros(configs["experts"].layers, configs["experts"].experts)

    def count(part: Experts, inputs: tuple[torch.Tensor, ForwardContext], _result: torch.Tensor) -> None:
        taken[part.layer] += inputs[1].loads[part.layer]

    for part in models["experts"].modules():
        if isinstance(part, Experts):
            part.register_forward_hook(count)
    for step in range(arguments.steps):
        tokens, targets = batch(train, step, ROWS, 1)
        for name, model in models.items():
            started = time.perf_counter()
            set_rate(optimizers[name], rate(step, arguments.steps, 20, 0.0))
            loss = model.loss(tokens, targets) / tokens.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers[name].values():
                optimizer.step()
            model.zero_grad(set_to_none=True)
            times[name].append(time.perf_counter() - started)
            losses[name].append(loss.item())
        if step % 20 == 19:
            windows.append((taken.amax(1) / taken.mean(1)).tolist())
            place = models["experts"]._place(tokens, None, None, None)
            with torch.no_grad():
                models["experts"]._layers(tokens, place, None)
            balances.append([float(load.max() / load.float().mean()) for load in place.loads.values()])
            dropped += sum(2 * tokens.numel() - int(load.sum()) for load in place.loads.values())
            taken.zero_()
            seconds = {name: round(statistics.median(t[-20:]), 3) for name, t in times.items()}
            print(step + 1, [round(x, 2) for x in balances[-1]], seconds, flush=True)
    scores = {}
    tokens, targets = batch(valid, 0, 128, 2)
    for name, model in models.items():
        with torch.no_grad():
            nats = sum(float(model.loss(tokens[i : i + 16], targets[i : i + 16])) for i in range(0, 128, 16))
        scores[name] = nats / math.log(2) / int(lengths[targets].sum())
    ratios = [b / a for a, b in zip(times["dense"], times["experts"], strict=True)]
    late, late_windows = ([max(row) for row in rows[len(rows) // 4 :]] for rows in (balances, windows))
    results = {
        "steps": arguments.steps,
        "threads": arguments.threads,
        "bits_per_byte": scores,
        "tokens_seen": arguments.steps * ROWS * CONTEXT,
        "tokens_of_corpus": train.tokens,
        "train_nats_last_tenth": {
            name: statistics.mean(each[-max(1, len(each) // 10) :]) for name, each in losses.items()
        },
        "step_time_ratio": statistics.median(ratios),
        "step_seconds": {name: statistics.median(t) for name, t in times.items()},
        "balance_median_of_worst_layer": statistics.median(late),
        "balance_worst": max(late),
        "balance_share_within_1.3": sum(each <= 1.3 for each in late) / len(late),
        "balance_of_20_steps_median": statistics.median(late_windows),
        "balance_of_20_steps_worst": max(late_windows),
        "balance_all_batches": balances,
        "dropped_tokens": dropped,
        "parameters": {name: sum(parameters(config).values()) for name, config in configs.items()},
        "active_parameters": {name: active_parameters(config) for name, config in configs.items()},
        "flops_per_token": {name: sum(flops_per_token(config, CONTEXT).values()) for name, config in configs.items()},
    }
    RESULTS.publish({"run": results})


if __name__ == "__main__":
    main()
