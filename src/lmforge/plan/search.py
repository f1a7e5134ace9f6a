"""The best layout of a network on a cluster: every one that divides, those that fit, the fastest of them simulated.

degrees × rows of a micro-batch × schedule × recomputation ─▶ fits? ─▶ seconds by formula ─▶ the first few,
                                                                                simulated event by event ─▶ fastest
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmforge.plan.accelerators import Accelerator, Cluster
from lmforge.plan.device_memory import head_layers, memory_of
from lmforge.plan.pipelines import Passes, Schedule, simulate, split_layers
from lmforge.plan.step_time import FITTED, ClusterLayout, DecoderShape, Recompute, StepTime, head_seconds, step_time

USABLE = 0.92  # share of a device's memory; the rest is the runtime's, and lost between blocks
RECOMPUTE: tuple[Recompute, ...] = ("none", "half", "full")
MICRO = (1, 2, 4, 8)  # rows of a micro-batch
SIMULATED = 10  # of the fastest by formula
MOST_PASSES = 200_000  # of a simulation, of all ranks
DEEPEST = 128  # stages


@dataclasses.dataclass(frozen=True)
class Space:
    """What a search may choose: degrees that are stated stay as they are (data: mesh's, without shard and expert)."""

    stated: tuple[tuple[str, int], ...] = ()  # axis of [parallel], processes
    tensor: tuple[int, ...] = ()  # degrees that the network allows; empty: all that divide its heads
    expert: tuple[int, ...] = ()
    deepest: int = DEEPEST
    contexts: tuple[int, ...] = ()
    recompute: tuple[Recompute, ...] = RECOMPUTE
    micro: tuple[int, ...] = MICRO
    strict: bool = False  # what leaves devices idle or shares rows unevenly is no layout

    def allows(self, axis: str, size: int) -> bool:
        """Whether an axis may have so many."""
        return dict(self.stated).get(axis, size) == size


class LayoutCandidate(NamedTuple):
    """One layout: what it takes of a device, and how long its step is."""

    layout: ClusterLayout
    memory: dict[str, float]
    time: StepTime
    imbalance: float = 0.0  # seconds that stages wait for the one with the output matrix
    simulated: float | None = None  # seconds of a step, event by event

    @property
    def foretold(self) -> float:
        """Seconds of a step by the formulas."""
        return self.time.total + self.imbalance

    @property
    def seconds(self) -> float:
        """Of a step: as simulated, where it was."""
        return self.foretold if self.simulated is None else self.simulated


def axes_of(layout: ClusterLayout) -> dict[str, int]:
    """A layout as a recipe's [parallel] says it: their product is the number of processes."""
    return {
        "data": layout.data // (layout.shard * layout.expert), "shard": layout.shard, "tensor": layout.tensor,
        "pipeline": layout.pipeline, "expert": layout.expert, "context": layout.context,
    }  # fmt: skip


def layouts(
    shape: DecoderShape, cluster: Cluster, sequence: int, batch: int, space: Space | None = None
) -> Iterator[ClusterLayout]:
    """Every layout that divides heads; devices that no copy of the network fills stay idle, unless the space is strict:
    then copies get equally many rows, too, and processes that share a row equally many of its tokens."""
    space = space or Space()
    devices, node = cluster.devices, cluster.accelerator.node
    contexts = space.contexts or (_powers(16) if sequence >= 16_384 else (1,))
    for tensor in (each for each in _divisors(shape.heads) if each <= min(node, 64, devices)):
        if not space.allows("tensor", tensor) or (space.tensor and tensor not in space.tensor):
            continue
        most = min(space.deepest, devices // tensor, shape.layers)
        for pipeline in (each for each in _stages(shape.layers, most) if space.allows("pipeline", each)):
            for context in (each for each in contexts if space.allows("context", each)):
                copies = min(batch, devices // (tensor * pipeline * context))
                uneven = copies * tensor * pipeline * context != devices or batch % max(1, copies)
                if copies and not (space.strict and (uneven or sequence % (tensor * context))):
                    yield from _variants(shape, node, sequence, batch, (tensor, pipeline, context, copies), space)


def _variants(
    shape: DecoderShape, node: int, sequence: int, batch: int, degrees: tuple[int, int, int, int], space: Space
) -> Iterator[ClusterLayout]:
    tensor, pipeline, context, copies = degrees
    for expert, shard in _shares(shape, node, tensor, copies, space):
        for micro in (each for each in space.micro if each == 1 or each * copies <= batch):
            for schedule, interleave in _schedules(shape.layers, pipeline, math.ceil(batch / (copies * micro))):
                for recompute in space.recompute:
                    yield ClusterLayout(
                        sequence, batch, micro, tensor, pipeline, interleave, context, expert, copies, shard, recompute,
                        sequence_parallel=tensor > 1, schedule=schedule, reshard=pipeline == 1,
                    )  # fmt: skip


@functools.cache
def _shares(shape: DecoderShape, node: int, tensor: int, copies: int, space: Space) -> list[tuple[int, int]]:
    """(expert, shard) degrees that divide the copies: none, all of them, those of a node, those between."""
    experts = list(_divisors(math.gcd(shape.experts, copies) if shape.experts else 1))
    found = []
    for expert in experts:
        if not space.allows("expert", expert) or (space.expert and expert not in space.expert):
            continue
        rest = copies // expert
        inside = math.gcd(rest, max(1, node // tensor))
        shards = {1, rest, inside, *(math.gcd(rest, 1 << power) for power in range(3, 11))}
        if stated := dict(space.stated).get("shard"):
            shards = {stated} if rest % stated == 0 else set()
        found += [(expert, shard) for shard in sorted(shards) if space.allows("data", rest // shard)]
    return found


def _schedules(layers: int, pipeline: int, micro_batches: int) -> Iterator[tuple[Schedule, int]]:
    """Schedules of a pipeline with the parts on each rank. GPipe has 1F1B's bubble and more activations, so it is never
    the best."""
    yield "1f1b", 1
    if pipeline == 1:
        return
    yield "zero-bubble", 1
    if micro_batches % max(1, micro_batches // pipeline) == 0:
        for parts in (2, 4, 8):
            if layers >= pipeline * parts:
                yield "interleaved", parts


def search(
    shape: DecoderShape, cluster: Cluster, sequence: int, batch: int, space: Space | None = None
) -> tuple[list[LayoutCandidate], LayoutCandidate | None]:
    """The layouts that fit, fastest first; and where none does, the one that comes nearest to fitting."""
    device, room = cluster.accelerator, USABLE * cluster.accelerator.memory_bytes
    fitting: list[LayoutCandidate] = []
    nearest: tuple[float, ClusterLayout] | None = None
    for layout in layouts(shape, cluster, sequence, batch, space):
        memory = memory_of(shape, layout)
        need = sum(memory.values())
        if need <= room:
            fitting.append(candidate(shape, device, layout, memory))
        elif nearest is None or need < nearest[0]:
            nearest = need, layout
    fitting.sort(key=lambda each: each.foretold)
    first = [simulated(shape, device, each) for each in fitting[:SIMULATED]]
    ordered = [*sorted(first, key=lambda each: each.seconds), *fitting[SIMULATED:]]
    return ordered, candidate(shape, device, nearest[1]) if nearest and not fitting else None


def candidate(
    shape: DecoderShape, device: Accelerator, layout: ClusterLayout, memory: dict[str, float] | None = None
) -> LayoutCandidate:
    """What a layout takes, by the formulas."""
    time, imbalance = step_time(shape, device, layout), 0.0
    if layout.pipeline > 1:
        layer, head = _weights(shape, device, layout, time)
        _, others, last = _split(shape.layers, layout.pipeline, layout.interleave, head_layers(shape))
        heaviest = max(others * layer, last * layer + head)
        imbalance = max(0.0, heaviest * layout.micro_batches - _work(time))
    return LayoutCandidate(layout, memory or memory_of(shape, layout), time, imbalance)


def _work(time: StepTime) -> float:
    """Seconds of all micro-batches' passes on the usual stage."""
    return time.products + time.attention + time.memory + time.tensor + time.context + time.expert


def _weights(shape: DecoderShape, device: Accelerator, at: ClusterLayout, time: StepTime) -> tuple[float, float]:
    """Seconds of a micro-batch in one layer, and in the output matrix, forward and backward."""
    head = FITTED.jitter * head_seconds(shape, device, at)
    counted = head * (1 / at.pipeline + 0.5 * (1 - 1 / at.pipeline))  # by `step_time`, on every stage
    return (_work(time) / at.micro_batches - counted) * at.pipeline / shape.layers, head


@functools.cache
def _split(layers: int, stages: int, parts: int, head: float) -> tuple[list[int], int, int]:
    """(layers of each part of the network, most layers of a rank but the last, layers of the last rank)."""
    split = split_layers(layers, stages * parts, head)
    ranks = [sum(split[rank::stages]) for rank in range(stages)]
    return split, max(ranks[:-1]), ranks[-1]


def simulated(shape: DecoderShape, device: Accelerator, each: LayoutCandidate) -> LayoutCandidate:
    """The same with its pipeline simulated event by event; as it is without one."""
    at, time = each.layout, each.time
    if at.pipeline == 1 or at.pipeline * at.interleave * at.micro_batches * 2 > MOST_PASSES:
        return each
    layer, head = _weights(shape, device, at, time)
    loads = [float(layers) for layers in _split(shape.layers, at.pipeline, at.interleave, head_layers(shape))[0]]
    loads[-1] += head / layer
    again = {"none": 0.0, "core": 0.0, "half": 0.5, "full": 1.0}[at.recompute]
    forward = layer / (3 + again)
    boundary = at.micro * at.sequence / at.context * shape.width * 2 / (at.tensor if at.sequence_parallel else 1)
    passes = Passes(forward, layer - forward, forward, boundary / (FITTED.slow * device.slow_link))
    found = simulate(at.schedule, at.pipeline, at.micro_batches, passes, at.interleave, loads=loads)
    return each._replace(simulated=found.seconds + time.data + time.optimizer)


def shown(layout: ClusterLayout) -> dict[str, Any]:
    """A layout as a recipe's [parallel] would say it, and what goes with it."""
    names = ("micro", "recompute", "reshard") + (("schedule", "interleave") if layout.pipeline > 1 else ())
    return axes_of(layout) | {name: getattr(layout, name) for name in names} | {"micro_batches": layout.micro_batches}


def _stages(layers: int, most: int) -> list[int]:
    """Numbers of stages: those that divide the layers, and powers of two, between which the split is uneven."""
    return sorted({each for each in _divisors(layers) if each <= most} | {*_powers(most)})


@functools.cache
def _powers(most: int) -> tuple[int, ...]:
    return tuple(1 << each for each in range(most.bit_length()) if 1 << each <= most)


@functools.cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(each for each in range(1, number + 1) if number % each == 0)
