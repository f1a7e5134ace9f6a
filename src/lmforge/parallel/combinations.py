"""Which layouts a network cannot have, and why: all reasons at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from lmforge.model.config import GPTConfig
from lmforge.parallel.context import context_problems
from lmforge.parallel.mesh import DATA_AXES
from lmforge.recipe.schema import Recipe


def impossible(sizes: Mapping[str, int], config: GPTConfig) -> list[str]:
    """The reasons why a network cannot lie over axes of these sizes; empty where it can. One sentence for each, which
    names the axis first."""
    return [
        f"{axis} {sizes[axis]}: {reason}"
        for axis, check in CHECKS.items()
        if sizes[axis] > 1
        for reason in check(sizes, config)
    ]


def untrainable(sizes: Mapping[str, int], recipe: Recipe, rows: Iterable[int]) -> list[str]:
    """The reasons why a training, with batches of so many rows, cannot run over axes of these sizes."""
    train, finetune = recipe.train, recipe.finetune
    shared = {axis: size for axis, size in sizes.items() if size > 1 and axis != "data"}
    if not shared:
        return []
    names, data = " × ".join(f"{axis} {size}" for axis, size in shared.items()), math.prod(sizes[a] for a in DATA_AXES)
    contexts = {recipe.tokens.context, *(length for _, length in train.context_schedule)}
    uneven = [count for count in rows if count % data]
    cut = sizes["shard"] * sizes["tensor"] > 1
    checks = [
        (
            bool(uneven),
            f"{names}: batches of {', '.join(map(str, uneven))} rows do not divide over the {data} processes that have "
            "rows of their own, and those that wait for each other need equally many; change train.batch_tokens",
        ),
        (
            any(length % sizes["tensor"] for length in contexts),
            f"tensor {sizes['tensor']}: rows of {', '.join(map(str, sorted(contexts)))} tokens do not divide over it; "
            "change tokens.context or train.context_schedule",
        ),
        (
            cut and train.optimizer_state == "8bit",
            f"{names}: train.optimizer_state '8bit' scales blocks of values that the cut would change; use 'fp32'",
        ),
        (
            train.compile == "on",
            f"{names}: train.compile 'on' is for a network on one device; use 'off'",
        ),
        (
            train.objective != "text",
            f"{names}: train.objective {train.objective!r} is for a network on one device; use data alone",
        ),
        (
            finetune is not None and finetune.lora is not None,
            f"{names}: adapters (finetune.lora) are for a network on one device; leave one of both out",
        ),
    ]
    return [reason for wrong, reason in checks if wrong]


def _tensor(sizes: Mapping[str, int], config: GPTConfig) -> list[str]:
    size, shapes = sizes["tensor"], {config.shape_of(layer) for layer in range(config.layers)}
    kv_heads = min((shape.kv_heads for shape in shapes if shape.heads), default=size)
    ranked = any(shape.qkv_rank or shape.out_rank or shape.up_rank or shape.down_rank for shape in shapes)
    checks = [
        (
            kv_heads < size,
            f"model.kv_heads {kv_heads} are fewer than the processes that share them; use at most {kv_heads}",
        ),
        (config.qk_norm_full, "model.qk_norm_full normalises all heads together, which no process has"),
        (ranked, "matrices of low rank (a compressed model) have no layout over it"),
        (bool(config.image_size), "patches of images have no layout over it"),
    ]
    return [reason for wrong, reason in checks if wrong]


def _expert(sizes: Mapping[str, int], config: GPTConfig) -> list[str]:
    if not config.has_experts:
        return ["the network has no experts; set model.experts, or leave the axis out"]
    fewest = min(shape.experts for shape in map(config.shape_of, range(config.layers)) if shape.experts)
    if fewest % sizes["expert"]:
        return [f"{fewest} experts of a layer do not divide over it"]
    return []


def _pipeline(sizes: Mapping[str, int], config: GPTConfig) -> list[str]:
    checks = [
        (
            config.layers < sizes["pipeline"],
            f"{config.layers} layers are fewer than its processes",
        ),
        (
            config.ahead > 0 and not config.tied,
            "model.ahead needs the embedding in the last stage; set model.tied = true",
        ),
        (
            config.ahead > 0 and sizes["tensor"] > 1,
            "model.ahead embeds tokens in the last stage, which tensor does in the first; use tensor = 1",
        ),
    ]
    return [reason for wrong, reason in checks if wrong]


def _context(sizes: Mapping[str, int], config: GPTConfig) -> list[str]:
    return context_problems(config, sizes["context"], sizes["tensor"])


CHECKS = {"tensor": _tensor, "expert": _expert, "pipeline": _pipeline, "context": _context}
