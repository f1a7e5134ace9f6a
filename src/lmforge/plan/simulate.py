"""What a recipe will cost, before it is run. Only formulas: a recipe may be far beyond the machine, and nothing is
allocated.

    recipe ─▶ network ─▶ parameters, FLOPs, bytes per device ─┐
    machine (measured) ───────────────────────────────────────┴─▶ fits, hours
"""

from __future__ import annotations

import math
import os
from typing import Any

from lmforge.model.config import GPTConfig, network_of
from lmforge.plan.cost import TRAINING, active_parameters, flops_per_token, parameters
from lmforge.plan.hardware import Hardware, detect
from lmforge.plan.memory import training_bytes
from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import ramp_of, with_length

PROCESS_BYTES = 600_000_000  # Python, torch and the shards' buffers
# Share of a device's memory that the components may fill; the rest is for what lives briefly (gradients of activations,
# Muon's work) or is lost between blocks. Sums against measured peaks of three CPU runs, MB: 928 for 701, 1264 for 1193,
# 1471 for 1524.
USABLE = 0.8
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


def plan(recipe: Recipe, hardware: Hardware | None = None, tokens_available: int | None = None) -> dict[str, Any]:
    """Parameters, operations, memory, time of training a recipe; `hardware` defaults to this machine, measured.

    Keys: parameters, active_parameters, flops_per_token (forward, operations), train_flops (3 × forward × tokens),
    train_tokens, steps, memory_bytes_per_device {component: bytes}, device_memory_bytes, fits, hours (None where no
    speed is known), device_hours, utilization (assumed share of the peak), layout {devices, device, data,
    micro_batch_tokens, micro_batches, precision}, epochs (of `tokens_available`, where given), assumptions (in words).
    """
    hardware = detect() if hardware is None else hardware
    recipe = with_length(recipe, _tokens_of_examples(recipe))
    config = network_of(recipe, recipe.tokens.vocab_size)
    steps, batch = training_length(recipe)
    layout = _layout(recipe, hardware, max(ramp_of(recipe).sizes) * recipe.tokens.context)
    half = layout["precision"] == "bf16"
    memory = training_bytes(
        config, layout["micro_batch_tokens"], recipe.train.optimizer, half, recipe.train.optimizer_state == "8bit"
    )
    memory["process"] = 0 if hardware.gpu else PROCESS_BYTES
    # Ranks on one machine without GPUs share its memory.
    room = hardware.device_memory_bytes // (1 if hardware.gpu else layout["data"])
    forward = sum(flops_per_token(config, config.context).values())
    train_flops = TRAINING * forward * steps * batch
    utilization = expected_utilization(config, hardware.gpu is not None)
    speed = (hardware.matrix_flops or 0) * utilization * (layout["data"] if hardware.gpu else 1)
    hours = train_flops / speed / 3600 if speed else None
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
        "device_hours": None if hours is None else hours * (layout["data"] if hardware.gpu else 1),
        "utilization": utilization,
        "layout": layout,
        **({"epochs": steps * batch / tokens_available} if tokens_available else {}),
        **_beyond(hours),
        "assumptions": _assumptions(hardware, half),
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
    context, train = recipe.tokens.context, recipe.train
    data = recipe.parallel.data or int(os.environ.get("WORLD_SIZE") or 1)
    share = max(context, math.ceil(batch // context / data) * context)
    # A CPU's training measures micro-batches up to the whole share, so that much must fit.
    most = train.micro_batch_tokens or (LARGEST_GPU_MICRO_BATCH if hardware.gpu else share)
    micro = min(share, max(context, most // context * context))
    half = train.precision == "bf16" or (train.precision == "auto" and hardware.gpu is not None)
    return {
        "devices": data,
        "device": hardware.device,
        "data": data,
        "micro_batch_tokens": micro,
        "micro_batches": math.ceil(share / micro),
        "precision": "bf16" if half else "fp32",
    }


def _assumptions(hardware: Hardware, half: bool) -> list[str]:
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
        + ("assumed by width, not measured here" if hardware.gpu else "by width, fitted to runs on two cores"),
        "operations: 2 per multiplication with addition, causal attention counted at half its square, training 3 × "
        "forward",
        f"memory: weights float32{' with bfloat16 copies' if half else ''}, every rank holds all of weights, gradients "
        "and optimizer; "
        f"{100 * USABLE:.0f}% of the device's memory is usable",
        "hours: training alone, without validation, checkpoints and the other stages",
    ]
