"""A recipe on a cluster of known accelerators: memory of a device by component, the best layout by search, hours,
money, energy; what must change where nothing fits.

    network ─▶ shape ─┐
    accelerators ─────┼─▶ search ─▶ the fastest layout, runners-up ─▶ hours ─▶ failures ─▶ calendar, money, energy
    batch, context ───┘
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lmforge.model.config import GPTConfig, network_of
from lmforge.plan import description
from lmforge.plan.accelerators import DESCRIPTION, Cluster
from lmforge.plan.cost import TRAINING, active_parameters, flops_per_token, parameters
from lmforge.plan.device_memory import memory_of_stage
from lmforge.plan.goodput import DEVICE_HOURS, PARTS, Faults, daly, simulate
from lmforge.plan.search import USABLE, LayoutCandidate, search, shown
from lmforge.plan.simulate import training_length
from lmforge.plan.step_time import ClusterLayout, DecoderShape
from lmforge.recipe import Recipe

SHOWN = 4  # layouts that are shown
CHECKPOINT_BYTES = 14  # of a parameter: weights in 16 bits, AdamW's moments and copy of the weights in 32
TO_HOST, TO_DISK = 10e9, 1e9  # bytes/s of a device into its host's memory, of a node onto a shared disk
SAVING_SECONDS, RESTART_SECONDS, REPAIR_SECONDS = 5.0, 600.0, 86_400.0
SLOW = 5.0  # times as long as between failures that a node goes without becoming slow
HOST = 8  # most devices that fail together
SIMULATIONS = 3  # of the whole training


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
        figures["description"] = description.figures(config, figures.get("utilization"))
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
        return answer | {"change": _change(nearest, cluster, rows), "layout": nearest and shown(nearest.layout)}
    best = fitting[0]
    hours = best.seconds * steps / 3600
    flops = shape.model_flops(rows * context, context)
    faults = goodput_of(shape, cluster, best.seconds * steps)
    device_hours = faults["calendar_hours"] * (cluster.devices + faults["spare_devices"])
    return answer | {
        "layout": shown(best.layout),
        "memory_bytes_per_device": best.memory,
        **_by_stage(shape, best.layout),
        "step_seconds": _seconds(best),
        "utilization": flops / best.seconds / cluster.flops,
        "hours": hours,
        "goodput": faults,
        "device_hours": device_hours,
        "dollars": device_hours * cluster.accelerator.dollars,
        "megawatt_hours": device_hours * cluster.accelerator.watts / 1e6,
        **_adjust(best.layout),
        "runners_up": [_runner_up(each, cluster, flops, hours / best.seconds) for each in fitting[1:SHOWN]],
    }


def _adjust(layout: ClusterLayout) -> dict[str, list[str]]:
    """Keys of the recipe that must change for this layout to share rows and their tokens evenly, which training asks
    for; the figures hold with them."""
    each = layout.micro_batches * layout.micro
    together = layout.tensor * layout.context
    context = math.ceil(layout.sequence / together) * together
    keys = []
    if context != layout.sequence:
        keys.append(f"tokens.context = {context}  # {together} processes share a row")
    if each * layout.data != layout.batch:
        keys.append(
            f"train.batch_tokens = {each * layout.data * context}  # {each} rows for each of {layout.data} copies"
        )
    return {"adjust": keys} if keys else {}


def _seconds(each: LayoutCandidate) -> dict[str, float]:
    """Seconds of a step, by what they go to: with a pipeline that was simulated, its idle time is the simulation's."""
    parts = dataclasses.asdict(each.time)
    if each.simulated is not None:
        parts["bubble"] = parts["pipeline"] = 0.0
        parts["bubble"] = each.seconds - sum(parts.values())
    elif each.imbalance:
        parts["imbalance"] = each.imbalance
    return parts | {"total": each.seconds}


def _by_stage(shape: DecoderShape, layout: ClusterLayout) -> dict[str, Any]:
    """Bytes of a device of the first, a middle and the last stage."""
    if layout.pipeline == 1:
        return {}
    stages = sorted({0, layout.pipeline // 2, layout.pipeline - 1})
    return {"memory_bytes_by_stage": {f"stage {each}": memory_of_stage(shape, layout, each) for each in stages}}


def _runner_up(each: LayoutCandidate, cluster: Cluster, flops: float, hours: float) -> dict[str, Any]:
    """What the table shows of a layout that is not the fastest."""
    device_hours = each.seconds * hours * cluster.devices
    return {
        "layout": shown(each.layout),
        "step_seconds": each.seconds,
        "memory_bytes": sum(each.memory.values()),
        "utilization": flops / each.seconds / cluster.flops,
        "hours": each.seconds * hours,
        "dollars": device_hours * cluster.accelerator.dollars,
        "megawatt_hours": device_hours * cluster.accelerator.watts / 1e6,
    }


def goodput_of(shape: DecoderShape, cluster: Cluster, seconds: float) -> dict[str, Any]:
    """What failures and slow nodes leave of a training of so many seconds of steps, simulated: checkpoint_every
    (seconds of steps, Daly's optimum, at least what writing one takes), spare_devices, failures, goodput (the share of
    the time that counts), calendar_hours, and hours by what they go to."""
    # where the fast links join thousands, what fails is still a host of a few
    per_node = min(HOST, cluster.accelerator.node, cluster.devices)
    nodes = math.ceil(cluster.devices / per_node)
    size = CHECKPOINT_BYTES * shape.parameters()
    failure = DEVICE_HOURS * 3600 / per_node
    away = nodes * REPAIR_SECONDS * (1 + 1 / SLOW) / failure
    saving = SAVING_SECONDS + size / cluster.devices / TO_HOST
    faults = Faults(
        nodes, failure, saving, RESTART_SECONDS, REPAIR_SECONDS, math.ceil(away + 3 * math.sqrt(away)), SLOW * failure
    )
    every = max(daly(saving, faults.between), size / (nodes * TO_DISK))
    found = [simulate(seconds, every, faults, seed) for seed in range(SIMULATIONS)]
    mean = {name: sum(getattr(each, name) for each in found) / len(found) for name in ("seconds", *PARTS, "failures")}
    return {
        "goodput": seconds / mean["seconds"],
        "calendar_hours": mean["seconds"] / 3600,
        "failures": round(mean["failures"]),
        "checkpoint_every": every,
        "checkpoint_seconds": saving,
        "spare_devices": faults.spares * per_node,
        **{f"{name}_hours": mean[name] / 3600 for name in PARTS},
    }


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
