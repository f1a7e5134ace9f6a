"""What a recipe will cost, before it is run. Only formulas: a recipe may be far beyond the machine, and nothing is
allocated.

    recipe ─▶ network ─▶ parameters, FLOPs, bytes per device ─┐
    machine (measured) ───────────────────────────────────────┴─▶ fits, hours
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from lmforge.model.config import GPTConfig, network_of
from lmforge.parallel.mesh import AXES, DATA_AXES
from lmforge.plan.cost import TRAINING, active_parameters, flops_per_token, parameters
from lmforge.plan.hardware import Hardware, detect
from lmforge.plan.here import Speeds, kept_speeds, step_seconds
from lmforge.plan.memory import training_bytes
from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import ramp_of, with_length

# Python, torch with what it loads at its first pass, and all else that training loads, where it was not measured
PROCESS_BYTES = 520_000_000
# Share of a device's memory that the components may fill; the rest is for what lives briefly (Muon's work), is lost
# between blocks, or belongs to others. `python -m bench.quality.planner_here` holds the sums against measured peaks.
USABLE = 0.85
# of activations: what a heap of freed blocks of many sizes keeps beside them; 0.20 and 0.27 measured for networks of 4
# × 256 and 12 × 192, of 2,048 tokens
BETWEEN_BLOCKS = 0.2
CHECKPOINTS = 5  # of a run that does not say how often
LARGEST_GPU_MICRO_BATCH = 65_536  # tokens
LONGEST_HOURS = 10 * 8766  # ten years
# of a file of examples: about how much smaller compression makes it, and bytes of a token, marks included
FOLDED, BYTES_PER_TOKEN = 3, 3


def training_length(recipe: Recipe) -> tuple[int, int]:
    """(steps, tokens of each, on the average): whole rows of the context."""
    ramp = ramp_of(recipe)
    return ramp.steps, round(ramp.before(ramp.steps) * recipe.tokens.context / max(1, ramp.steps))


def expected_utilization(config: GPTConfig, gpu: bool) -> float:
    """Share of the matrix peak that training reaches, by width: small matrices leave more of the time to everything
    else.

    CPU: 0.95·D/(D + 120), fitted to 47, 76 and 85% measured at D = 128, 384, 768 on two cores (within 4 points). GPU:
    0.5·D/(D + 600), an assumption that reaches the 40-50% which large dense models report (Chowdhery et al. 2022, table
    3) and was not measured here.
    """
    return 0.5 * config.d_model / (config.d_model + 600) if gpu else 0.95 * config.d_model / (config.d_model + 120)


def plan(
    recipe: Recipe,
    hardware: Hardware | None = None,
    tokens_available: int | None = None,
    speeds: Speeds | None = None,
) -> dict[str, Any]:
    """Parameters, operations, memory, time of training a recipe; `hardware` defaults to this machine, measured.
    `speeds`: what its CPU takes for each kind of work, where that was measured (default for this machine: what is
    kept).

    Keys: parameters, active_parameters, flops_per_token (forward, operations), train_flops (3 × forward × tokens),
    train_tokens, steps, memory_bytes_per_device {component: bytes}, device_memory_bytes, fits, hours (None where no
    speed is known), device_hours, utilization (assumed share of the peak), layout {devices, device, data,
    micro_batch_tokens, micro_batches, precision}, epochs (of `tokens_available`, where given), assumptions (in words).
    """
    speeds = kept_speeds() if hardware is None and speeds is None else speeds
    hardware = detect() if hardware is None else hardware
    recipe = with_length(recipe, _tokens_of_examples(recipe))
    config = network_of(recipe, recipe.tokens.vocab_size)
    steps, batch = training_length(recipe)
    layout = _layout(recipe, hardware, max(ramp_of(recipe).sizes) * recipe.tokens.context)
    half = layout["precision"] == "bf16"
    memory = training_bytes(
        config, layout["micro_batch_tokens"], recipe.train.optimizer, half, recipe.train.optimizer_state == "8bit"
    )
    memory = _shared(memory, layout["axes"])
    memory |= _kept_beside(recipe, memory, steps, hardware)
    memory["process"] = 0 if hardware.gpu else (speeds.process if speeds else PROCESS_BYTES)
    # Ranks on one machine without GPUs share its memory.
    room = hardware.device_memory_bytes // (1 if hardware.gpu else layout["devices"])
    forward = sum(flops_per_token(config, config.context).values())
    train_flops = TRAINING * forward * steps * batch
    utilization = expected_utilization(config, hardware.gpu is not None)
    speed = (hardware.matrix_flops or 0) * utilization * (layout["devices"] if hardware.gpu else 1)
    hours = train_flops / speed / 3600 if speed else None
    foretold = None
    if speeds and not hardware.gpu:
        foretold = _foretold(recipe, config, layout, speeds)
        hours = sum(foretold.values()) * steps / 3600
        utilization = train_flops / (hours * 3600) / hardware.matrix_flops if hardware.matrix_flops else utilization
    return {
        "parameters": sum(parameters(config).values()),
        "active_parameters": active_parameters(config),
        "flops_per_token": forward,
        "train_flops": train_flops,
        "train_tokens": steps * batch,
        "steps": steps,
        "memory_bytes_per_device": memory,
        "device_memory_bytes": room,
        "fits": sum(memory.values()) <= USABLE * room,
        "hours": hours,
        "device_hours": None if hours is None else hours * (layout["devices"] if hardware.gpu else 1),
        "utilization": utilization,
        "layout": layout,
        **({"epochs": steps * batch / tokens_available} if tokens_available else {}),
        **_beyond(hours),
        **({"step_seconds": foretold} if foretold else {}),
        "assumptions": _assumptions(hardware, half, foretold is not None),
    }


def _beyond(hours: float | None) -> dict[str, str]:
    """What to say of a training that nobody would wait for."""
    if hours is None or hours < LONGEST_HOURS:
        return {}
    years = hours / 8766
    return {
        "advice": f"{years:,.0f} years on this device: nobody would run that here; plan it on a cluster with "
        "--hardware h100x1024, or description for the one that its description names"
    }


def _tokens_of_examples(recipe: Recipe) -> int:
    """About how many tokens a recipe fine-tunes on, by the size of its file."""
    if not recipe.finetune or not recipe.finetune.train.is_file():
        return 0
    unfolded = FOLDED if recipe.finetune.train.suffix in (".gz", ".zst") else 1
    return max(1, recipe.finetune.train.stat().st_size * unfolded // BYTES_PER_TOKEN)


def _layout(recipe: Recipe, hardware: Hardware, batch: int) -> dict[str, Any]:
    """How the batch is laid over devices, as the training loop does it."""
    context, train, stated = recipe.tokens.context, recipe.train, recipe.parallel
    others = math.prod(getattr(stated, axis) for axis in AXES if axis != "data")
    world = int(os.environ.get("WORLD_SIZE") or 1)
    axes = {axis: getattr(stated, axis) or max(1, world // others) for axis in AXES}
    data = math.prod(axes[axis] for axis in DATA_AXES)
    share = max(context, math.ceil(batch // context / data) * context)
    # A CPU's training measures micro-batches up to the whole share, so that much must fit.
    most = train.micro_batch_tokens or (LARGEST_GPU_MICRO_BATCH if hardware.gpu else share)
    micro = min(share, max(context, most // context * context))
    half = train.precision == "bf16" or (train.precision == "auto" and hardware.gpu is not None)
    return {
        "devices": math.prod(axes.values()),
        "device": hardware.device,
        "data": data,
        "axes": {axis: size for axis, size in axes.items() if size > 1},
        "micro_batch_tokens": micro,
        "micro_batches": math.ceil(share / micro),
        "precision": "bf16" if half else "fp32",
    }


def _shared(memory: dict[str, int], axes: Mapping[str, int]) -> dict[str, int]:
    """What is left of it for one device where axes share the network or a row."""

    def over(*names: str) -> int:
        return math.prod(axes.get(name, 1) for name in names)

    parts = {
        "weights": over("shard", "tensor", "pipeline"), "gradients": over("shard", "tensor", "pipeline"),
        "optimizer": over("shard", "tensor", "pipeline"), "activations": over("tensor", "context"),
        "logits": over("tensor"),
    }  # fmt: skip
    return {name: size // parts.get(name, 1) for name, size in memory.items()}


def _kept_beside(recipe: Recipe, memory: Mapping[str, int], steps: int, hardware: Hardware) -> dict[str, int]:
    """What training keeps beside the step: the moving average of the weights, and, on a CPU, the copy of everything
    that a checkpoint is written from while the steps go on, and what the heap loses."""
    average = memory["weights"] if recipe.train.ensemble else 0
    every = recipe.train.checkpoint_every or math.ceil(steps / CHECKPOINTS)
    copied = memory["weights"] + memory["optimizer"] + average if every < steps and not hardware.gpu else 0
    lost = round(BETWEEN_BLOCKS * (memory["activations"] + memory["logits"])) if not hardware.gpu else 0
    return {"average": average, "checkpoint": copied, "between_blocks": lost}


def _foretold(recipe: Recipe, config: GPTConfig, layout: Mapping[str, Any], speeds: Speeds) -> dict[str, float]:
    """Seconds of a step on this CPU."""
    rows = layout["micro_batch_tokens"] * layout["micro_batches"] // config.context
    alone = layout["devices"] == 1
    replicas = min(recipe.train.threads or speeds.cores, rows) if alone and recipe.train.compile != "on" else 1
    micro = min(layout["micro_batch_tokens"] // config.context, math.ceil(rows / replicas))
    return step_seconds(speeds, config, rows, micro, layout["devices"], replicas, recipe.train.optimizer)


def _assumptions(hardware: Hardware, half: bool, measured: bool = False) -> list[str]:
    """What the figures rest on, in sentences."""
    peak = (
        f"{hardware.matrix_flops / 1e9:,.0f} GFLOP/s"
        if hardware.matrix_flops
        else "not measured, so no hours are given"
    )
    kind = "bf16" if hardware.gpu else "fp32"
    return [
        f"matrix peak of the device ({hardware.device}): {peak}, {kind}, measured now with one product",
        "utilization: "
        + (
            "from what this machine was measured to take for each kind of work (lmforge plan --measure)"
            if measured
            else "assumed by width, not measured here"
            if hardware.gpu
            else "by width, fitted to runs on two cores; lmforge plan --measure measures this machine once"
        ),
        "operations: 2 per multiplication with addition, causal attention counted at half its square, training 3 × "
        "forward",
        f"memory: weights float32{' with bfloat16 copies' if half else ''}; the main rank's, which writes checkpoints; "
        f"{100 * USABLE:.0f}% of the device's memory is usable",
        "hours: training alone, without validation, checkpoints and the other stages",
    ]
