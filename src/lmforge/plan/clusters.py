"""A recipe on a cluster of known accelerators: memory of a device by component, the best layout by search, hours,
money, energy; what must change where nothing fits.

    network ─▶ Shape ─┐
    accelerators ─────┼─▶ every layout that divides ─▶ fits? ─▶ step_time ─▶ the fastest, runners-up
    batch, context ───┘
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmforge.model.config import GPTConfig, network_of
from lmforge.plan import description
from lmforge.plan.accelerators import DESCRIPTION, Cluster
from lmforge.plan.cost import TRAINING, active_parameters, flops_per_token, parameters
from lmforge.plan.simulate import training_length
from lmforge.plan.step_time import ClusterLayout, DecoderShape, Recompute, StepTime, step_time
from lmforge.recipe import Recipe

USABLE = 0.92  # share of a device's memory; the rest is the runtime's, and lost between blocks
RECOMPUTE: tuple[Recompute, ...] = ("none", "half", "full")
SHOWN = 4  # layouts that are shown
MOST_UTILISATION = 0.65  # beyond it no published run of a large network has come


class LayoutCandidate(NamedTuple):
    """One layout that fits: what it takes of a device, and how long its step is."""

    layout: ClusterLayout
    memory: dict[str, float]
    time: StepTime

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.time.total


def shape_of(config: GPTConfig) -> DecoderShape:
    """The network as the planner of clusters sees it."""
    experts = config.experts
    return DecoderShape(
        config.layers,
        config.d_model,
        config.heads,
        config.d_ff // experts if experts else config.d_ff,
        config.vocab_size,
        config.kv_heads,
        config.head_width,
        gated=config.gated,
        experts=experts,
        active=config.experts_active if experts else 0,
        shared=config.experts_shared if experts else 0,
        tied=config.tied,
        keys=_keys(config),
    )


def _keys(config: GPTConfig) -> float:
    """Keys that a query meets, averaged over the layers (formulas of `cost`); 0 where all layers are full."""
    if set(config.attention) == {"full"}:
        return 0.0
    scores = flops_per_token(config, config.context)["attention"]
    return scores / (4 * config.layers * config.heads * config.head_width)


def memory_of(shape: DecoderShape, at: ClusterLayout, sparse_keys: int | None = None) -> dict[str, float]:
    """Bytes on the fullest device, by component: weights and gradients in 16 bits, AdamW's state in 32 (12 bytes a
    parameter), activations of the micro-batches that are under way (Korthikanti et al. 2022, section 4), logits.

    `sparse_keys`: keys that a query meets where attention is sparse; it bounds what is kept of scores.
    """
    parameters = shape.parameters() / (at.tensor * at.pipeline)
    if shape.experts and at.expert > 1:
        experts = shape.layers * (shape.ff_parameters(False) - shape.ff_parameters(True)) / (at.tensor * at.pipeline)
        parameters -= experts * (1 - 1 / at.expert)
    tokens = at.micro * at.sequence / at.context
    split = at.tensor if at.sequence_parallel else 1
    wide = shape.ff * (3 if shape.gated else 2) * (shape.active + shape.shared if shape.experts else 1)
    kept = tokens * (2 * shape.width * (5 / split + 3 / at.tensor) + 2 * wide / at.tensor)
    if not at.flash:
        keys = min(at.sequence, sparse_keys or at.sequence)
        kept += 5 * tokens * keys * shape.heads / at.tensor * (0 if at.recompute in ("core", "full") else 1)
    if at.recompute == "full":
        kept = 2 * tokens * shape.width / split
    elif at.recompute == "half":
        kept *= 0.6
    under_way = min(at.micro_batches, at.pipeline) * (1 + (at.pipeline - 1) / (at.pipeline * at.interleave))
    under_way = 1.0 if at.pipeline == 1 else under_way
    layers = shape.layers / at.pipeline
    state_shard = max(at.shard, at.data)  # the optimizer's state is always spread over the copies (ZeRO 1)
    return {
        "weights": 2 * parameters / at.shard,
        "gradients": 2 * parameters / at.shard,
        "optimizer": 12 * parameters / state_shard,
        "activations": kept * layers * under_way
        + (2 * tokens * shape.width * 8 / split if at.recompute == "full" else 0),
        "logits": 6 * min(tokens, 4096) * shape.vocabulary / at.tensor,
        "gathered": 2 * 2 * shape.parameters() / shape.layers / at.tensor if at.shard > 1 else 0.0,
    }


def layouts(shape: DecoderShape, cluster: Cluster, sequence: int, batch: int) -> Iterator[ClusterLayout]:
    """Every layout that divides heads and layers; devices that no copy of the network fills stay idle."""
    devices, node = cluster.devices, cluster.accelerator.node
    for tensor in (each for each in _divisors(shape.heads) if each <= min(node, 64, devices)):
        for pipeline in (each for each in _divisors(shape.layers) if each <= min(128, devices // tensor)):
            for context in _powers(16) if sequence >= 16_384 else (1,):
                data = min(batch, devices // (tensor * pipeline * context))
                if data:
                    yield from _variants(shape, node, sequence, batch, tensor, pipeline, context, data)


def _variants(
    shape: DecoderShape, node: int, sequence: int, batch: int, tensor: int, pipeline: int, context: int, data: int
) -> Iterator[ClusterLayout]:
    parts = [1] if pipeline == 1 else [each for each in (1, 2, 4, 8) if (shape.layers // pipeline) % each == 0]
    expert = 1
    if shape.experts:
        expert = math.gcd(shape.experts, data)
    for interleave in parts:
        for shard in {1, data if pipeline == 1 else 1, min(data, node) if pipeline == 1 else 1}:
            for micro in (1, 2, 4):
                if micro > 1 and micro * data > batch:
                    continue
                for recompute in RECOMPUTE:
                    yield ClusterLayout(
                        sequence, batch, micro, tensor, pipeline, interleave, context, expert, data, shard, recompute,
                        sequence_parallel=tensor > 1,
                    )  # fmt: skip


def search(
    shape: DecoderShape, cluster: Cluster, sequence: int, batch: int
) -> tuple[list[LayoutCandidate], LayoutCandidate | None]:
    """The layouts that fit, fastest first; and where none does, the one that comes nearest to fitting."""
    room = USABLE * cluster.accelerator.memory_bytes
    fitting: list[LayoutCandidate] = []
    nearest: LayoutCandidate | None = None
    for layout in layouts(shape, cluster, sequence, batch):
        memory = memory_of(shape, layout)
        if sum(memory.values()) <= room:
            fitting.append(LayoutCandidate(layout, memory, step_time(shape, cluster.accelerator, layout)))
        elif nearest is None or sum(memory.values()) < sum(nearest.memory.values()):
            nearest = LayoutCandidate(layout, memory, step_time(shape, cluster.accelerator, layout))
    return sorted(fitting, key=lambda each: each.seconds), nearest if not fitting else None


def plan_for(recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """What `simulate.plan` tells of the network and the training, and `plan_on` of the cluster."""
    config = network_of(recipe, recipe.tokens.vocab_size)
    steps, batch = training_length(recipe)
    forward = sum(flops_per_token(config, config.context).values())
    figures: dict[str, Any] = {
        "parameters": sum(parameters(config).values()),
        "active_parameters": active_parameters(config),
        "flops_per_token": forward,
        "train_flops": TRAINING * forward * steps * batch,
        "train_tokens": steps * batch,
        "steps": steps,
    }
    figures |= plan_on(config, cluster, recipe.tokens.context, batch, steps)
    if cluster == DESCRIPTION:
        figures["description"] = description.figures(config)
    return figures


def plan_on(config: GPTConfig, cluster: Cluster, context: int, batch_tokens: int, steps: int) -> dict[str, Any]:
    """The figures of a training on a cluster: layout, runners_up, memory_bytes_per_device, step_seconds by part,
    utilization (a result), hours, device_hours, dollars, megawatt_hours, fits, change (what must where it does not)."""
    shape, rows = shape_of(config), max(1, batch_tokens // context)
    fitting, nearest = search(shape, cluster, context, rows)
    room = cluster.accelerator.memory_bytes
    answer: dict[str, Any] = {
        "hardware": f"{cluster.devices:,} × {cluster.accelerator.name}",
        "peak_flops": cluster.flops,
        "device_memory_bytes": room,
        "fits": bool(fitting),
    }
    if not fitting:
        return answer | {"change": _change(nearest, cluster, rows), "layout": nearest and _shown(nearest.layout)}
    best = fitting[0]
    hours = best.seconds * steps / 3600
    flops = shape.model_flops(rows * context, context)
    return answer | {
        "layout": _shown(best.layout),
        "memory_bytes_per_device": best.memory,
        "step_seconds": {**dataclasses.asdict(best.time), "total": best.seconds},
        "utilization": flops / best.seconds / cluster.flops,
        "hours": hours,
        "device_hours": hours * cluster.devices,
        "dollars": hours * cluster.devices * cluster.accelerator.dollars,
        "megawatt_hours": hours * cluster.devices * cluster.accelerator.watts / 1e6,
        "runners_up": [{"layout": _shown(each.layout), "step_seconds": each.seconds} for each in fitting[1:SHOWN]],
    }


def _shown(layout: ClusterLayout) -> dict[str, Any]:
    """A layout as a recipe's [parallel] would say it, and what goes with it."""
    names = ("data", "shard", "tensor", "pipeline", "interleave", "context", "expert", "micro", "recompute")
    return {name: getattr(layout, name) for name in names} | {"micro_batches": layout.micro_batches}


def _change(nearest: LayoutCandidate | None, cluster: Cluster, rows: int) -> str:
    """What would make it fit."""
    if nearest is None:
        return (
            f"no layout divides {cluster.devices} devices for {rows} rows a step; take another number of devices, or "
            "raise train.batch_tokens"
        )
    need, room = sum(nearest.memory.values()), USABLE * cluster.accelerator.memory_bytes
    most = max(nearest.memory, key=lambda name: nearest.memory[name])
    times = math.ceil(need / room)
    return (
        f"the leanest layout needs {need / 1e9:.0f} GB of {room / 1e9:.0f} GB a device, most of it {most}; take about "
        f"{times} times as many devices, or devices with {need / USABLE / 1e9:.0f} GB"
    )


def _powers(most: int) -> list[int]:
    return [1 << each for each in range(most.bit_length()) if 1 << each <= most]


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
