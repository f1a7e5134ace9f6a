"""Can a small model trained at 30,000 tokens find a key planted anywhere in them?

    python bench/passkey.py --kind sparse --minutes 25        (one thread; adds to bench/results/passkey.json)

A row is random filler with `MARK d1 d2 d3 d4` planted at a random place, and ends with `ASK d1 d2 d3 d4`; only the last four digits count.
Lengths grow as they are learned (256, 1,024, 4,096, 16,384, 30,000 tokens). Accuracy: all four digits right, by length and depth of the key.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.record import code_version, machine, write_atomic

DIGITS, MARK, ASK, FILLER, VOCABULARY = 10, 10, 11, 12, 32
LENGTHS = (256, 1024, 4096, 16_384, 30_000)
STEP_TOKENS = 16_384
RESULTS = Path(__file__).parent / "results" / "passkey.json"
KINDS = {
    "sparse": {"attention": ("sparse",), "window": 128, "stride": 1024, "pool": 64},
    "pooled": {"attention": ("pooled",), "pool": 128},
    "lsh": {"attention": ("lsh",), "lsh_span": 32, "lsh_rounds": 4},
    "linear": {"attention": ("linear",), "feature_map": "learned"},
    "window": {"attention": ("window",), "window": 128},
}


def rows_of(count: int, length: int, generator: torch.Generator, depth: float | None = None) -> tuple[Tensor, Tensor]:
    """Tokens and targets (count, length−1); depth 0: the key stands at the beginning, 1: just before the question."""
    tokens = torch.randint(FILLER, VOCABULARY, (count, length), generator=generator)
    key = torch.randint(0, DIGITS, (count, 4), generator=generator)
    room = length - 5 - 5
    at = torch.randint(0, room + 1, (count,), generator=generator) if depth is None else torch.full((count,), round(depth * room))
    places = at[:, None] + torch.arange(5)
    tokens.scatter_(1, places, torch.cat((torch.full((count, 1), MARK), key), 1))
    tokens[:, -5] = ASK
    tokens[:, -4:] = key
    targets = torch.full((count, length - 1), -1)
    targets[:, -4:] = key
    return tokens[:, :-1], targets


def network(kind: str) -> GPT:
    """About 0.2 M parameters."""
    model = GPT(GPTConfig(
        vocab_size=VOCABULARY, context=30_000, layers=3, d_model=64, heads=2, kv_heads=2, d_ff=256, norm="layernorm", rope_base=1e7, **KINDS[kind],
    ))  # fmt: skip
    model.initialise(1)
    return model


@torch.no_grad()
def right(model: GPT, tokens: Tensor, targets: Tensor) -> Tensor:
    """Which rows have all four digits likeliest."""
    hidden = model.hidden(tokens)[:, -4:]
    assert model.head is not None
    return (model.head(hidden).argmax(-1) == targets[:, -4:]).all(-1)


def train(model: GPT, minutes: float) -> list[dict[str, Any]]:
    """AdamW; the next length comes when nine of ten training keys are found, or with its share of the time."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    journal, started, stage, found, step = [], time.process_time(), 0, 0.0, 0
    while (spent := (time.process_time() - started) / 60) < minutes:
        length = LENGTHS[stage]
        tokens, targets = rows_of(max(1, STEP_TOKENS // length), length, generator)
        rate = min(1.0, (step + 1) / 100) * (1.0 if spent < 0.8 * minutes else max(0.05, (minutes - spent) / (0.2 * minutes)))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * rate
        loss = model.loss(tokens, targets) / (targets >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        found = 0.95 * found + 0.05 * (loss.item() < 0.15)
        if step % 50 == 0:
            journal.append({"step": step, "length": length, "loss": round(loss.item(), 4), "minutes": round(spent, 2)})
            print(journal[-1], f"found {found:.2f}", flush=True)
        if stage + 1 < len(LENGTHS) and found > 0.9:
            stage, found = stage + 1, 0.0
    return journal


def main() -> None:
    """Train one kind, test it at every length and depth, add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="processor minutes of training")
    parser.add_argument("--keys", type=int, default=20, help="keys tried for each length and depth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = network(arguments.kind)
    journal = train(model, arguments.minutes)
    generator = torch.Generator().manual_seed(123)
    depths = [(i + 0.5) / 10 for i in range(10)]
    table: dict[str, list[float]] = {}
    for length in LENGTHS[1:]:
        table[str(length)] = []
        for depth in depths:
            found = [right(model, *rows_of(1, length, generator, depth + 0.1 * (i / arguments.keys - 0.5))) for i in range(arguments.keys)]
            table[str(length)].append(float(torch.cat(found).float().mean()))
        print(arguments.kind, length, table[str(length)], flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"kinds": {}}
    results |= {"command": "python bench/passkey.py --kind KIND", "machine": machine(), "code": code_version(), "depths": depths}
    results["kinds"][arguments.kind] = {
        "parameters": sum(p.numel() for p in model.parameters()), "settings": KINDS[arguments.kind], "minutes": arguments.minutes,
        "keys": arguments.keys, "accuracy": table, "mean_at_30000": sum(table["30000"]) / 10, "steps": journal[-1]["step"],
        "longest_trained": max(entry["length"] for entry in journal), "steps_at_30000": sum(entry["length"] == 30_000 for entry in journal) * 50,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "journal": journal[::10],
    }  # fmt: skip
    write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
