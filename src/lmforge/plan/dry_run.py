"""`lmforge plan --dry-run`: a layout without its devices, and everything that is wrong with it, at once.

recipe + number of processes ─▶ rules ─────────────────────────────────┐
    └▶ each stage's network, applied on a fake process group, ─────────┼─▶ problems, each with the key to change
       its tensors without memory ─▶ parameters held, memory by stage ─┘
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from lmforge.errors import LmforgeError
from lmforge.model.config import GPTConfig, network_of
from lmforge.model.gpt import GPT
from lmforge.parallel.combinations import impossible, untrainable
from lmforge.parallel.mesh import AXES, Mesh
from lmforge.parallel.mesh_layout import MeshLayout
from lmforge.parallel.shares import local
from lmforge.plan.accelerators import Cluster
from lmforge.plan.auto import AUTO, as_accelerator, chosen_keys, space_of
from lmforge.plan.clusters import shape_of
from lmforge.plan.device_memory import layers_of_stage, memory_of_stage
from lmforge.plan.hardware import detect
from lmforge.plan.pipelines import Schedule, orders
from lmforge.plan.search import USABLE, search
from lmforge.plan.step_time import ClusterLayout
from lmforge.recipe import Recipe
from lmforge.tokens.batch_schedule import ramp_of

FEW_LAYERS = 2  # of each stage that are built
ROWS = 2  # of the tokens that go through the network, on no device
SHOWN_STAGES = 3  # whose networks are built: the first, one in the middle, the last


def dry_run(recipe: Recipe, cluster: Cluster | None = None) -> dict[str, Any]:
    """problems (each names its key first, then the cause, then the fix), processes, axes, stages [{stage, rank,
    parameters (held by a process), memory_bytes}].

    `cluster`: default, as many processes of this machine as [parallel] states.
    """
    config = network_of(recipe, recipe.tokens.vocab_size)
    if recipe.parallel.layout == AUTO and cluster is not None:
        recipe = _chosen(recipe, config, cluster)
    settings = recipe.parallel
    others = math.prod(getattr(settings, axis) for axis in AXES if axis != "data")
    processes = others * (settings.data or 1) if cluster is None else cluster.devices
    sizes = {axis: getattr(settings, axis) or max(1, processes // others) for axis in AXES}
    if cluster is None:
        cluster = Cluster(as_accelerator(detect(measure=False), processes), processes)
    problems = [
        *_wrong_numbers(recipe, sizes, processes),
        *(f"parallel.{each}" for each in impossible(sizes, config)),
        *(f"parallel.{each}" for each in untrainable(sizes, recipe, sorted({*ramp_of(recipe).sizes}))),
    ]
    layout = layout_of(recipe, sizes)
    stages: list[dict[str, Any]] = []
    broken: list[str] = []
    if math.prod(sizes.values()) == processes:
        numbers = sorted({0, sizes["pipeline"] // 2, sizes["pipeline"] - 1})[:SHOWN_STAGES]
        for stage in numbers:
            held, wrong = _on_fake_group(recipe, config, sizes, stage)
            broken += [each for each in wrong if each not in problems + broken]
            memory = memory_of_stage(shape_of(config), layout, stage)
            problems += _too_much(stage, memory, cluster)
            rank = stage * (processes // sizes["pipeline"])
            stages.append({"stage": stage, "rank": rank, "parameters": held, "memory_bytes": memory})
    return {"problems": problems + broken, "processes": processes, "axes": sizes, "stages": stages}


def _chosen(recipe: Recipe, config: GPTConfig, cluster: Cluster) -> Recipe:
    """With the layout that the planner chooses for a cluster; as it is where it finds none."""
    space = space_of(recipe, config, cluster.devices)
    fitting, _ = search(shape_of(config), cluster, recipe.tokens.context, min(ramp_of(recipe).sizes), space)
    keys = chosen_keys(recipe.parallel, fitting[0]) if fitting else {"layout": None}
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=keys)})


def layout_of(recipe: Recipe, sizes: dict[str, int]) -> ClusterLayout:
    """What a recipe asks for, as the planner sees it."""
    settings, context = recipe.parallel, recipe.tokens.context
    rows = min(ramp_of(recipe).sizes)
    data = sizes["data"] * sizes["shard"] * sizes["expert"]
    asked = settings.pipeline_schedule
    schedule: Schedule = "zero-bubble" if asked == "zbv" else asked
    parts = settings.pipeline_stages or (2 if schedule == "interleaved" else 1)
    parts = 1 if schedule == "zero-bubble" else parts  # as the planner knows it
    micro = (recipe.train.micro_batch_tokens or context) // context
    return ClusterLayout(
        context, rows, max(1, micro), sizes["tensor"], sizes["pipeline"], parts,
        sizes["context"], sizes["expert"], data, sizes["shard"], "full" if recipe.model.recompute else "none",
        sequence_parallel=sizes["tensor"] > 1, schedule=schedule,
        reshard=settings.reshard,
    )  # fmt: skip


def _wrong_numbers(recipe: Recipe, sizes: dict[str, int], processes: int) -> Iterator[str]:
    """What does not divide."""
    product, context, train = math.prod(sizes.values()), recipe.tokens.context, recipe.train
    if product != processes:
        stated = " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        key = "data" if recipe.parallel.data else max(sizes, key=lambda axis: sizes[axis])
        yield (
            f"parallel.{key}: {stated} is {product} processes, and there are {processes}; change a degree so that the "
            "product is their number" + ("; or leave parallel.data out" if key == "data" else "")
        )
    data, rows = sizes["data"] * sizes["shard"] * sizes["expert"], min(ramp_of(recipe).sizes)
    if rows < data:
        yield (
            f"train.batch_tokens: {rows} rows of {context} tokens for {data} processes with rows of their own (data × "
            f"shard × expert); raise it to {data * context}, or lower these degrees"
        )
    micro = train.micro_batch_tokens
    if micro is not None and micro % context:
        yield (
            f"train.micro_batch_tokens: {micro} is no number of whole rows of {context} tokens; use "
            f"{max(1, micro // context) * context}"
        )
    lengths = {context, *(length for _, length in train.context_schedule)}
    for length in sorted(each for each in lengths if each % sizes["context"]):
        yield (
            f"parallel.context: {sizes['context']} processes do not share rows of {length} tokens evenly; use a "
            "divisor, or another tokens.context"
        )
    if sizes["pipeline"] > 1 and rows >= data:
        layout = layout_of(recipe, sizes)
        try:
            orders(layout.schedule, layout.pipeline, layout.micro_batches, layout.interleave)
        except LmforgeError as error:
            yield f"parallel.pipeline: {error}"
        if layout.micro_batches < layout.pipeline:
            yield (
                f"train.batch_tokens: {layout.micro_batches} micro-batches leave some of the {layout.pipeline} stages "
                "idle all the time; raise it, or lower train.micro_batch_tokens or parallel.pipeline"
            )


def _too_much(stage: int, memory: dict[str, float], cluster: Cluster) -> Iterator[str]:
    """What does not fit a device."""
    need, room = sum(memory.values()), USABLE * cluster.accelerator.memory_bytes
    if need > room:
        most = max(memory, key=lambda name: memory[name])
        key = {
            "activations": "train.micro_batch_tokens: lower it, set model.recompute, or raise parallel.tensor",
            "logits": "tokens.vocab_size: lower it, or raise parallel.tensor",
        }.get(most, "parallel.shard: raise it, or parallel.tensor or pipeline")
        name, _, fix = key.partition(": ")
        yield (
            f"{name}: stage {stage} needs {need / 1e9:,.1f} GB of {room / 1e9:,.1f} GB a device, most of it {most}; "
            + fix
        )


def _on_fake_group(recipe: Recipe, config: GPTConfig, sizes: dict[str, int], stage: int) -> tuple[int, list[str]]:
    """(parameters that a process of a stage holds, what went wrong on the way)."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

    world, held = math.prod(sizes.values()), 0
    short = _shortened(config, sizes["pipeline"])
    layers = layers_of_stage(shape_of(config), ClusterLayout(1, 1, 1, pipeline=sizes["pipeline"]), stage)
    with _fake_group(stage * (world // sizes["pipeline"]), world) as rank:
        mesh = Mesh(rank, world, torch.device("cpu"), sizes)
        _ = mesh.device_mesh  # made of numbers, which there are none of inside
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                model = GPT(short)
                object.__setattr__(model, "to", lambda *_: model)  # it is nowhere, and stays there
                model = MeshLayout(mesh, recipe.parallel).apply(model)
                held = _held(model, layers if short.layers < config.layers else None)
                if sizes["pipeline"] == 1:
                    model.hidden(torch.zeros(ROWS, config.context // sizes["context"], dtype=torch.long))
        except (DataDependentOutputException, DynamicOutputShapeException):
            pass  # what depends on values goes no further without them
        except NotImplementedError as error:
            return held, [f"parallel: {error or 'an axis of this layout is not built yet'}"]
        except LmforgeError as error:
            reasons = str(error).removeprefix("parallel: ").split("; ")
            return held, [f"parallel.{reason}" for reason in reasons if reason]
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            if ".numpy()" in str(error):  # a kernel of this machine's, which needs numbers too
                return held, []
            return held, [
                f"parallel: stage {stage}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ]
    return held, []


def _shortened(config: GPTConfig, stages: int) -> GPTConfig:
    """With a few layers for each stage, where all are alike: what is wrong with one is wrong with all."""
    shapes = {config.shape_of(layer) for layer in range(config.layers)}
    alike = len(shapes) == len({config.kind_of(layer) for layer in range(config.layers)}) == 1
    return dataclasses.replace(config, layers=min(config.layers, FEW_LAYERS * stages)) if alike else config


def _held(model: GPT, layers: int | None) -> int:
    """Parameters that a process has; `layers`: with so many layers, of which `model` has a few."""
    sizes = {name: local(parameter).numel() for name, parameter in model.named_parameters()}
    of_blocks = {name: size for name, size in sizes.items() if name.startswith("blocks.")}
    there = len({name.split(".")[1] for name in of_blocks})
    more = 0 if layers is None or not there else sum(of_blocks.values()) * (layers - there) // there
    return sum(sizes.values()) + more


@contextlib.contextmanager
def _fake_group(rank: int, world: int) -> Iterator[int]:
    """A process group in which this process is one of many that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        try:
            yield rank
        finally:
            dist.destroy_process_group()
