"""Stages of a pipeline: which blocks each gets, and a network with the parts of one stage.

    embedding │ blocks 0 … │ blocks i … │ … blocks, norm, head
    └─ stage 0 ────────────┴─ stage 1 ──┴─ last stage ────────┘

A part keeps the names of the whole network ("blocks.7" stays that), so optimizers and checkpoints find parameters by
name whatever the number of stages.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

from torch import nn

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.schedules import stages_of
from lmforge.recipe.schema import Parallel

BEFORE_BLOCKS = ("embed", "ngrams", "learned_positions", "patches")


class Stages:
    """Which process has which stages, and which layers they are."""

    def __init__(self, config: GPTConfig, mesh: Mesh, settings: Parallel) -> None:
        """
        Raises:
            InputError: a schedule that is not known or does not take so many stages, or fewer layers than stages.
        """
        self.schedule = settings.pipeline_schedule
        self.by_rank = stages_of(self.schedule, mesh.sizes["pipeline"], settings.pipeline_stages)
        self.count = sum(map(len, self.by_rank))
        self.own = self.by_rank[mesh.places["pipeline"]]
        self.layers = divide(config, self.count, settings.pipeline_layers)
        self.tied = config.tied

    @property
    def own_layers(self) -> list[int]:
        """Layers of this process."""
        return [layer for stage in self.own for layer in self.layers[stage]]

    @property
    def is_first(self) -> bool:
        """Whether this process embeds tokens."""
        return 0 in self.own

    @property
    def is_last(self) -> bool:
        """Whether this process has the head."""
        return self.count - 1 in self.own

    def process_of(self, stage: int) -> int:
        """Which process of the pipeline has a stage."""
        return next(rank for rank, own in enumerate(self.by_rank) if stage in own)

    @property
    def ends_meet(self) -> bool:
        """Whether one process has both the embedding and the head."""
        return self.process_of(0) == self.process_of(self.count - 1)


def divide(config: GPTConfig, stages: int, counts: Sequence[int] = ()) -> list[range]:
    """The blocks of each of `stages` stages, in order: such that the most expensive stage is as cheap as possible, or
    as `counts` says.

    A block costs what a token multiplies in it; the first stage bears the embedding (a lookup, and a row's gradient:
    one matrix of D × D), the last one the head.

    Raises:
        InputError: fewer blocks than stages, or `counts` that do not add up.
    """
    layers = config.layers
    if counts:
        if len(counts) != stages or sum(counts) != layers or min(counts) < 1:
            raise InputError(
                f"parallel.pipeline_layers: {list(counts)} is not {stages} numbers, each at least 1, with the sum "
                f"{layers} (model.layers)"
            )
        ends = [sum(counts[: i + 1]) for i in range(stages)]
        return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
    if stages > layers:
        raise InputError(
            f"parallel.pipeline: {stages} stages for {layers} layers; each needs one, so lower parallel.pipeline or "
            "raise model.layers"
        )
    costs = [block_macs(config, layer) + mixing_macs(config, layer) for layer in range(layers)]
    costs[0] += config.d_model**2
    costs[-1] += config.d_model * config.vocab_size
    return _least_worst(costs, stages)


def block_macs(config: GPTConfig, layer: int) -> int:
    """Multiplications of a token by a layer's matrices; those of the experts that it is sent to."""
    shape, wide = config.shape_of(layer), config.d_model
    heads = 2 * shape.heads + (1 if config.kind_of(layer) == "lsh" else 2) * shape.kv_heads
    units = shape.d_ff
    if shape.experts:
        units = units * (config.experts_active + config.experts_shared) // shape.experts
    return wide * (heads * config.head_width + units * (3 if config.gated else 2) + shape.experts)


def mixing_macs(config: GPTConfig, layer: int) -> int:
    """Multiplications of a token with the keys and values that it meets in a layer, half a full context on average."""
    kind, heads, half = config.kind_of(layer), config.shape_of(layer).heads, config.context // 2
    if kind == "linear":
        width = config.head_width * (2 if config.feature_map == "learned" else 1)
        return 2 * heads * width * config.head_width
    band = min(half, config.pool if kind == "pooled" else config.window)
    strided = half // config.stride if kind in ("strided", "sparse") else 0
    pooled = half // config.pool if kind in ("pooled", "sparse") else 0
    keys = {"full": half, "lsh": config.lsh_rounds * config.lsh_span}.get(kind, band + strided + pooled)
    return 2 * heads * config.head_width * keys


def _least_worst(costs: Sequence[int], stages: int) -> list[range]:
    """Neighbours together, the most expensive group as cheap as possible, no group empty."""
    layers = len(costs)
    # best[i]: (cost of the worst stage, where stages begin) of the first i layers in so many stages
    best: list[tuple[int, list[int]] | None] = [None, *((sum(costs[:i]), [0]) for i in range(1, layers + 1))]
    for count in range(2, stages + 1):
        more: list[tuple[int, list[int]] | None] = [None] * (layers + 1)
        for end in range(count, layers + 1):
            choices = []
            for begin in range(count - 1, end):
                before = best[begin]
                if before is not None:
                    choices.append((max(before[0], sum(costs[begin:end])), [*before[1], begin]))
            more[end] = min(choices)
        best = more
    found = best[layers]
    assert found is not None
    return [range(begin, end) for begin, end in zip(found[1], [*found[1][1:], layers], strict=True)]


def leave(model: GPT, layers: Collection[int], first: bool, last: bool) -> GPT:
    """Take from a network all but these layers, what stands before all layers (stays if `first`), and what stands after
    them (`last`). Returns it."""
    for name in [*model.blocks._modules]:
        if int(name) not in layers:
            del model.blocks[int(name)]
    for name in BEFORE_BLOCKS if not first else ():
        model._modules[name] = None
    if not last:
        model._modules |= {"norm": None, "head": None, "ahead": nn.ModuleList()}
    return model


def part_of(model: GPT, layers: Collection[int], first: bool, last: bool) -> GPT:
    """Another network over the same modules, with these parts alone (`leave`)."""
    # the class as it was before the network was sharded: shards are gathered for all parts together
    kind = next(each for each in type(model).__mro__ if not hasattr(each, "reshard"))
    part: GPT = object.__new__(kind)
    part.__dict__ |= model.__dict__
    part._modules, part._buffers = dict(model._modules), dict(model._buffers)
    part.blocks = copy.copy(model.blocks)
    part.blocks._modules = dict(model.blocks._modules)
    return leave(part, layers, first, last)
