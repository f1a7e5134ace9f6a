"""`parallel.layout = "auto"`: the planner chooses the axes that a recipe leaves open, for the processes there are.

machine, measured ─▶ an accelerator ─┐
network, what it allows ─────────────┼─▶ search ─▶ [parallel] of the fastest layout that fits
axes that the recipe states ─────────┘
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig, network_of
from lmforge.parallel import agree
from lmforge.parallel.combinations import impossible
from lmforge.plan.accelerators import ACCELERATORS, Accelerator, Cluster
from lmforge.plan.clusters import shape_of
from lmforge.plan.hardware import Hardware, detect
from lmforge.plan.search import LayoutCandidate, Space, axes_of, search, shown
from lmforge.progress import log
from lmforge.recipe import Recipe
from lmforge.recipe.schema import Parallel
from lmforge.tokens.batch_schedule import ramp_of

AUTO = "auto"
AXES = ("data", "shard", "tensor", "pipeline", "expert", "context")
LOOPBACK = 2e9  # bytes/s that processes of one machine exchange by gloo, measured on two cores
SIMPLER = 1.03  # times as slow a layout may be that needs fewer axes: the formulas are no more exact
UNKNOWN_LINK = 25e9  # of GPUs of which nothing is known: PCIe


def with_chosen_layout(recipe: Recipe) -> Recipe:
    """The recipe with the layout that rank 0 chose, on every rank, and said; as it is where it asks for another than
    "auto".

    Raises:
        InputError: no layout goes into these processes with the axes that are stated.
    """
    if recipe.parallel.layout != AUTO:
        return recipe

    def choose() -> dict[str, Any]:
        best = best_layout(recipe, agree.world(), detect())
        words = ", ".join(f"{name} {value}" for name, value in axes_of(best.layout).items() if value > 1)
        log(f"plan: parallel.layout auto: {words or 'one process'} ({best.seconds:.3g} s a step foretold)")
        return chosen_keys(recipe.parallel, best)

    keys = agree.on_main(choose)
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=keys)})


def chosen_keys(stated: Parallel, best: LayoutCandidate) -> dict[str, Any]:
    """The keys of [parallel] that make a recipe ask for this layout."""
    named = {"schedule": "pipeline_schedule", "interleave": "pipeline_stages"}
    told = {named.get(key, key): value for key, value in shown(best.layout).items() if key != "reshard"}
    if told.get("pipeline_schedule") == "zero-bubble":  # the engine's that comes next to it takes its own stages
        told |= {"pipeline_schedule": "zbv", "pipeline_stages": None}
    known = axes_of(best.layout) | told
    return {"layout": None} | {key: value for key, value in known.items() if key in type(stated).model_fields}


def best_layout(recipe: Recipe, processes: int, hardware: Hardware) -> LayoutCandidate:
    """The fastest layout over so many processes of this machine; where none fits, the one that comes nearest.

    Raises:
        InputError: no layout goes into these processes with the axes that are stated.
    """
    config = network_of(recipe, recipe.tokens.vocab_size)
    rows = max(1, min(ramp_of(recipe).sizes))
    cluster = Cluster(as_accelerator(hardware, processes), processes)
    space = space_of(recipe, config, processes)
    fitting, nearest = search(shape_of(config), cluster, recipe.tokens.context, rows, space)
    if not fitting and nearest is None:
        stated = ", ".join(f"{axis} = {size}" for axis, size in _stated(recipe.parallel)) or "none stated"
        raise InputError(
            f"parallel.layout auto: no layout of {processes} processes for {rows} rows a step ({stated}); change the "
            "number of processes, a stated degree, or train.batch_tokens"
        )
    if nearest is not None:
        return nearest
    near = [each for each in fitting if each.seconds <= SIMPLER * fitting[0].seconds]
    return min(near, key=lambda each: (_axes_in_use(each), each.seconds))


def _axes_in_use(each: LayoutCandidate) -> int:
    """How far a layout is from plain copies of the network."""
    return sum(size > 1 for axis, size in axes_of(each.layout).items() if axis != "data")


def space_of(recipe: Recipe, config: GPTConfig, processes: int) -> Space:
    """What a search may choose for this network: degrees that it allows, all processes in use."""

    def allowed(axis: str) -> tuple[int, ...]:
        sizes = (size for size in range(1, processes + 1) if processes % size == 0)
        return tuple(size for size in sizes if not impossible(dict.fromkeys(AXES, 1) | {axis: size}, config))

    micro = recipe.train.micro_batch_tokens
    return Space(
        stated=_stated(recipe.parallel),
        tensor=allowed("tensor"),
        expert=allowed("expert"),
        contexts=allowed("context") if recipe.tokens.context >= 8192 or recipe.parallel.context > 1 else (1,),
        recompute=("full",) if recipe.model.recompute else ("none",),
        micro=(max(1, micro // recipe.tokens.context),) if micro else (1, 2, 4, 8),
        strict=True,
    )


def _stated(parallel: Parallel) -> tuple[tuple[str, int], ...]:
    given = {axis: getattr(parallel, axis) for axis in AXES}
    return tuple((axis, size) for axis, size in given.items() if size is not None and (size > 1 or axis == "data"))


def as_accelerator(hardware: Hardware, processes: int) -> Accelerator:
    """This machine's device as the planner of clusters sees it; processes on a CPU share its cores and memory."""
    flops, moved = hardware.matrix_flops or 1e11, hardware.bytes_per_second or 1e10
    if hardware.gpu:
        known = next((each for name, each in ACCELERATORS.items() if name in hardware.gpu.lower()), None)
        if known is not None:
            return dataclasses.replace(
                known, memory_bytes=hardware.gpu_memory_bytes, node=hardware.gpus, flops=flops / known.sustained
            )
        return Accelerator(
            hardware.gpu, flops, hardware.gpu_memory_bytes, moved, UNKNOWN_LINK, UNKNOWN_LINK, hardware.gpus, 1.0
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or processes)
    return Accelerator(
        hardware.device, flops / local, hardware.memory_bytes / local, moved / local, LOOPBACK, LOOPBACK, local, 1.0
    )
