"""Trainings of nanoGPT and nanochat with their own code, for a given time, inside their own Python."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT, VOCABULARY = 256, 4096

HELD_OUT = "held-out.npz"
NANOGPT_SIZES = {"small": (4, 4, 128), "medium": (4, 6, 192), "large": (6, 4, 256)}  # layers, heads, width


NANOCHAT_DEPTHS = {"small": 2, "medium": 3, "large": 4}  # width 64 a layer
NANOCHAT_BATCH = 4096  # tokens; its script for CPUs states 16,384 for thirty minutes of a faster machine


# steps that are timed beforehand, and as many more as take 3% of the time; the first three warm up and compile
TIMED = 8


def steps_within(seconds: float, step: Any, clock: Any) -> int:
    """How many steps fit into the time."""
    times: list[float] = []
    while len(times) < TIMED or sum(times[3:]) < 0.03 * seconds:
        started = clock()
        step(len(times))
        times.append(clock() - started)
    return max(10, int(seconds / np.mean(times[3:])))


def vocabulary_of(data: Path) -> int:
    """Tokens of the vocabulary of the shards."""
    return int(json.loads((data / "tokens" / "index.json").read_text())["vocab_size"])


def rows_at(stream: Any, context: int, rows: int, generator: Any) -> Any:
    """Random rows of the stream: inputs and targets."""
    import torch

    starts = torch.randint(len(stream) - context - 1, (rows,), generator=generator)
    cut = torch.stack(
        [torch.from_numpy(stream[start : start + context + 1].astype(np.int64)) for start in starts.tolist()]
    )
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()


# long: follows the peer's own script, step by step
def nanogpt(folder: str, data: Path, size: str, seconds: float, clock: Any) -> dict[str, Any]:
    """Its CPU command's settings (README): batch 12, AdamW, 1e-3 falling to 1e-4, warm-up of 100 steps, beta2 0.99."""
    sys.path.insert(0, folder)
    import torch

    from model import GPT, GPTConfig

    layers, heads, width = NANOGPT_SIZES[size]
    stream, vocabulary = np.memmap(data / "train.bin", dtype=np.uint16, mode="r"), vocabulary_of(data)
    peak, least, warmup = 1e-3, 1e-4, 100

    def start() -> tuple[Any, Any, Any]:
        torch.manual_seed(1337)
        model = GPT(
            GPTConfig(
                n_layer=layers,
                n_head=heads,
                n_embd=width,
                block_size=CONTEXT,
                vocab_size=vocabulary,
                dropout=0.0,
                bias=False,
            )
        )
        return model, model.configure_optimizers(0.1, peak, (0.9, 0.99), "cpu"), torch.Generator().manual_seed(1)

    model, optimizer, generator = start()

    def step(_index: int) -> None:
        _, loss = model(*rows_at(stream, CONTEXT, 12, generator))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    steps = steps_within(seconds, step, clock)
    model, optimizer, generator = start()
    began, began_cpu = clock(), time.process_time()
    for index in range(steps):
        progress = (index - warmup) / max(1, steps - warmup)
        rate = (
            peak * (index + 1) / (warmup + 1)
            if index < warmup
            else least + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - least)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        step(index)
    spent, cpu = clock() - began, time.process_time() - began_cpu
    model.eval()

    def nats(inputs: Any, targets: Any) -> float:
        _, mean = model(inputs, targets)
        return float(mean) * int((targets >= 0).sum())

    return {
        "steps": steps,
        "tokens": steps * 12 * CONTEXT,
        "spent": spent,
        "cpu_seconds": cpu,
        "nats": validated(data, nats),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


# long: follows the peer's own script, step by step
def nanochat(folder: str, data: Path, size: str, seconds: float, clock: Any) -> dict[str, Any]:
    """base_train.py's rules: rates by the root of the batch, weight decay by batch and horizon, warm-up 40, warm-down
    65%, momentum 0.85 to 0.97."""
    sys.path.insert(0, folder)
    import torch
    from nanochat.gpt import GPT, GPTConfig

    depth = NANOCHAT_DEPTHS[size]
    stream, vocabulary = np.memmap(data / "train.bin", dtype=np.uint16, mode="r"), vocabulary_of(data)
    batch = 2**19

    def make(layers: int, on: str = "cpu") -> Any:
        with torch.device("meta"):
            model = GPT(
                GPTConfig(
                    sequence_len=CONTEXT,
                    vocab_size=vocabulary,
                    n_layer=layers,
                    n_head=layers,
                    n_kv_head=layers,
                    n_embd=64 * layers,
                    window_pattern="L",
                )
            )
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
        # the rule is for horizons near the compute-optimal one; so short a training would get a decay above 1
        decay = min(decay, 0.28)
        optimizer = model.setup_optimizer(
            unembedding_lr=0.008 * scale,
            embedding_lr=0.3 * scale,
            scalar_lr=0.5 * scale,
            matrix_lr=0.02 * scale,
            weight_decay=decay,
        )
        return model, optimizer, torch.Generator().manual_seed(1), decay

    model, optimizer, generator, decay = start(1000)

    def step(_index: int) -> None:
        inputs, targets = rows_at(stream, CONTEXT, NANOCHAT_BATCH // CONTEXT, generator)
        model(inputs, targets).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)

    steps = steps_within(seconds, step, clock)
    model, optimizer, generator, decay = start(steps)
    falls = round(0.65 * steps)
    began, began_cpu = clock(), time.process_time()
    for index in range(steps):
        left = (steps - index) / falls
        multiplier = (index + 1) / 40 if index < 40 else 1.0 if index <= steps - falls else left + (1 - left) * 0.05
        momentum = (
            0.85 + 0.12 * index / 400
            if index < 400
            else 0.97
            if index < steps - falls
            else 0.97 * left + 0.90 * (1 - left)
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
            if group["kind"] == "muon":
                group["momentum"], group["weight_decay"] = (
                    momentum,
                    decay * 0.5 * (1 + math.cos(math.pi * index / steps)),
                )
        step(index)
    spent, cpu = clock() - began, time.process_time() - began_cpu
    return {
        "steps": steps,
        "tokens": steps * NANOCHAT_BATCH,
        "spent": spent,
        "cpu_seconds": cpu,
        "nats": validated(data, lambda inputs, targets: float(model(inputs, targets, loss_reduction="sum"))),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": os.environ.get("NANOCHAT_DTYPE", "float32"),
    }


def validated(data: Path, nats: Any) -> float:
    """The sum over the validation rows."""
    import torch

    rows = np.load(data / HELD_OUT)
    inputs, targets = torch.from_numpy(rows["inputs"]), torch.from_numpy(rows["targets"])
    with torch.no_grad():
        return sum(nats(inputs[first : first + 16], targets[first : first + 16]) for first in range(0, len(inputs), 16))
