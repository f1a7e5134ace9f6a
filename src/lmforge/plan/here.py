"""Seconds of a training step on this machine's CPU, foretold from a recipe and what the machine was measured to do.

recipe ─▶ amounts of each kind of work ─┐
machine ─▶ seconds of each (`probe`) ───┴─▶ one rank's pass × ranks that share the cores + exchange ─▶ a step
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from lmforge import machine
from lmforge.model.config import GPTConfig
from lmforge.plan.cost import flops_per_token, layers_of, parameters, training_flops_per_token
from lmforge.plan.memory import activation_bytes_per_token
from lmforge.record import cache_directory, hash_json, write_atomic

FORMAT = 2  # of the kept measurement
BANDED = ("window", "strided", "pooled", "sparse")
ORTHOGONALISING = 5  # steps of Muon's iteration
# kinds of work: operations of matrix products, of attention by kind; bytes of activations and of logits moved; blocks
# run, experts run, whole passes
KINDS = ("products", "full", "banded", "linear", "lsh", "activations", "logits", "blocks", "experts", "passes")


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What one thread of this machine takes: seconds for each unit of the kinds of work; `update` for each parameter of
    an AdamW step with clipping; `step` beside all that; `beside`: times as long work takes with all cores busy;
    `message` and `byte`: of an all-reduce of two processes, in seconds; `process`: bytes of a process without a
    network."""

    seconds: Mapping[str, float]
    update: float
    step: float
    beside: float
    message: float
    byte: float
    process: int
    cores: int


def amounts(config: GPTConfig, tokens: int) -> dict[str, float]:
    """Of each kind of work, in the forward and backward pass of one micro-batch of `tokens` tokens."""
    layers, context = layers_of(config), config.context
    forward = flops_per_token(config, context)
    whole = training_flops_per_token(config, context)
    mixing = dict.fromkeys(("full", "banded", "linear", "lsh"), 0.0)
    for kind in {layer.kind for layer in layers if layer.shape.heads}:
        count = sum(layer.kind == kind for layer in layers if layer.shape.heads)
        alone = dataclasses.replace(config, attention=(kind,), layers=1, layer_shapes=())
        mixing["banded" if kind in BANDED else kind] += count * flops_per_token(alone, context)["attention"]
    scale = forward["attention"] / (sum(mixing.values()) or 1.0)  # layers may differ in their widths
    again = 1.0 if config.recompute or config.residual == "reversible" else 0.0
    plain = dataclasses.replace(config, recompute=False, residual="plain")
    attention = {kind: 3.5 * scale * value for kind, value in mixing.items()}
    products = max(0.0, whole - 3.5 * forward["attention"])
    return {
        "products": tokens * products,
        **{kind: tokens * value for kind, value in attention.items()},
        "activations": tokens * activation_bytes_per_token(plain) * (1 + again / 3),
        "logits": 4.0 * tokens * config.vocab_size,
        "blocks": len(layers) * (1 + again / 3),
        "experts": sum(layer.shape.experts for layer in layers) * (1 + again / 3),
        "passes": 1.0,
    }


def pass_seconds(speeds: Speeds, config: GPTConfig, tokens: int) -> float:
    """One micro-batch forward and backward on one thread, with nothing beside it."""
    return sum(speeds.seconds[kind] * amount for kind, amount in amounts(config, tokens).items())


def step_seconds(
    speeds: Speeds,
    config: GPTConfig,
    rows: int,
    micro_rows: int,
    ranks: int = 1,
    replicas: int = 1,
    optimizer: str = "adamw",
) -> dict[str, float]:
    """A step of data-parallel training by what its seconds go to: passes, exchange, update, rest. `rows` of one rank,
    in micro-batches of `micro_rows`, spread over `replicas` threads."""
    busy = ranks * replicas
    # beyond one thread a core they take turns
    slower = (1.0 if busy == 1 else speeds.beside) * max(1.0, busy / speeds.cores)
    share = math.ceil(rows / replicas)
    passes = 0.0
    for first in range(0, share, micro_rows):
        passes += pass_seconds(speeds, config, min(micro_rows, share - first) * config.context)
    total = sum(parameters(config).values())
    exchange = 0.0
    if ranks > 1:
        exchange = speeds.message + 4 * total * speeds.byte * 2 * (ranks - 1) / ranks
        exchange *= max(1.0, ranks / speeds.cores)
    update = speeds.update * total * (1 + (replicas - 1) / 3)
    if optimizer == "muon":
        update += speeds.seconds["products"] * _orthogonalising(config)
    update *= (1.0 if ranks == 1 else speeds.beside) * max(1.0, ranks / speeds.cores)
    return {"passes": passes * slower, "exchange": exchange, "update": update, "rest": speeds.step}


def _orthogonalising(config: GPTConfig) -> float:
    """Operations of Muon's iteration over the blocks' matrices: of R × C, R the smaller side, 4R²C + 2R³ each time."""
    total = 0.0
    for layer in layers_of(config):
        wide = layer.shape.d_ff * (2 if config.gated else 1)
        sides = [(config.d_model, layer.projected), (layer.queries, config.d_model), (config.d_model, wide)]
        sides.append((layer.shape.d_ff, config.d_model))
        for one, other in sides:
            small, large = min(one, other), max(one, other)
            total += ORTHOGONALISING * (4 * small**2 * large + 2 * small**3)
    return total


def _kept_file() -> Path:
    return cache_directory() / f"machine-{hash_json([FORMAT, machine.describe()])[:16]}.json"


def kept_speeds() -> Speeds | None:
    """What was measured of this machine before; None where nothing was."""
    try:
        return Speeds(**json.loads(_kept_file().read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep_speeds(speeds: Speeds) -> None:
    """For later plans.

    Raises:
        LmforgeError: it could not be written.
    """
    write_atomic(_kept_file(), json.dumps(dataclasses.asdict(speeds), indent=1))
