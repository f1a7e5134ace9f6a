"""Pipeline schedules as a simulation of events: what each stage does when, how long a step is, how much of it is idle.

    schedule ─orders─▶ what each rank does, in order ─┐
    seconds of a stage's passes, of a hand-over ──────┴─simulate─▶ when each is done ─▶ step, bubble, activations held

Copies of the network, and the parts of its matrices, do the same at the same time, so one pipeline stands for all of
them; a copy with a slow device is a pipeline of its own (`slow`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from lmforge.errors import InputError

Schedule = Literal["gpipe", "1f1b", "interleaved", "zero-bubble"]
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "zero-bubble")
Pass = Literal["F", "B", "W"]  # forward; backward for inputs (and weights, where there is no W); for weights


class Work(NamedTuple):
    """One pass of one micro-batch through one part of the network; parts count from the first layers to the last."""

    kind: Pass
    part: int
    micro_batch: int


@dataclasses.dataclass(frozen=True)
class Passes:
    """Seconds of the passes of one micro-batch through one part of the network, and of handing it to the next rank.

    `backward` is for inputs and weights together; a schedule that splits it takes `weights` out of it.
    """

    forward: float
    backward: float
    weights: float = 0.0
    hand_over: float = 0.0


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What came out: seconds until the last rank is done, seconds of work of the busiest rank, and for each rank the
    most micro-batches of which it holds activations, counted in parts of the network."""

    seconds: float
    work: float
    held: tuple[int, ...]

    @property
    def bubble(self) -> float:
        """Idle seconds of the busiest rank."""
        return self.seconds - self.work


def orders(schedule: Schedule, stages: int, micro_batches: int, parts: int = 1) -> list[list[Work]]:
    """What each of `stages` ranks does in a step, in order, each with `parts` parts of the network.

    gpipe: Huang et al. 2019; 1f1b: Narayanan et al. 2019 (PipeDream-Flush); interleaved: Narayanan et al. 2021, section
    2.2; zero-bubble: Qi et al. 2023, the handcrafted schedule ZB-H1, whose activations are those of 1f1b.

    Raises:
        InputError: parts without a schedule that interleaves them, or micro-batches that do not go into its rounds.
    """
    if parts > 1 and schedule in ("gpipe", "1f1b"):
        raise InputError(f"pipeline schedule {schedule}: it has one part of the network a rank; interleaved has more")
    rounds = max(1, micro_batches // stages) if parts > 1 else 1
    if micro_batches % rounds:
        raise InputError(
            f"pipeline schedule {schedule}: {micro_batches} micro-batches do not go into rounds of {stages} stages; "
            f"take a multiple of {stages}"
        )
    return [[*_order(schedule, rank, stages, micro_batches, parts)] for rank in range(stages)]


def _order(schedule: Schedule, rank: int, stages: int, micro_batches: int, parts: int) -> Iterator[Work]:
    total = micro_batches * parts
    group = micro_batches // max(1, micro_batches // stages) if parts > 1 else micro_batches

    def forward(number: int) -> Work:
        turn, inside = divmod(number, group * parts)
        return Work("F", inside // group * stages + rank, turn * group + inside % group)

    def backward(number: int) -> Work:
        turn, inside = divmod(number, group * parts)
        return Work("B", (parts - 1 - inside // group) * stages + rank, turn * group + inside % group)

    if schedule == "gpipe":
        yield from map(forward, range(total))
        yield from map(backward, range(total))
        return
    ahead = stages - 1 - rank  # forward passes before the first backward pass, beside its own
    ahead = min(total, ahead if parts == 1 else 2 * ahead + (parts - 1) * group)
    split, late = schedule == "zero-bubble", rank  # backward passes by which those for weights come later
    yield from map(forward, range(ahead))
    for number in range(total):
        if ahead + number < total:
            yield forward(ahead + number)
        yield backward(number)
        if split and number >= late:
            yield backward(number - late)._replace(kind="W")
    if split:
        for number in range(max(0, total - late), total):
            yield backward(number)._replace(kind="W")


def simulate(
    schedule: Schedule,
    stages: int,
    micro_batches: int,
    passes: Passes,
    parts: int = 1,
    slow: Sequence[float] = (),
    loads: Sequence[float] = (),
) -> Simulated:
    """One step of one pipeline. `slow`: how many times as long each rank takes; `loads`: how many times as long each
    part of the network does (default: all alike)."""
    order = orders(schedule, stages, micro_batches, parts)
    last, split = stages * parts - 1, schedule == "zero-bubble"
    seconds = {"F": passes.forward, "B": passes.backward - split * passes.weights, "W": passes.weights}
    rank_factor, part_factor = slow or [1.0] * stages, loads or [1.0] * stages * parts
    done: dict[Work, float] = {}
    clock, work, next_of = [0.0] * stages, [0.0] * stages, [0] * stages
    ready = deque(range(stages))
    while ready:
        rank = ready.popleft()
        while next_of[rank] < len(order[rank]):
            each = order[rank][next_of[rank]]
            needed = _needs(each, last)
            if needed is not None and needed not in done:
                break
            arrives = 0.0
            if needed is not None:
                arrives = done[needed] + (passes.hand_over if needed.part % stages != rank else 0.0)
            took = seconds[each.kind] * rank_factor[rank] * part_factor[each.part]
            clock[rank] = done[each] = max(clock[rank], arrives) + took
            work[rank] += took
            next_of[rank] += 1
        ready.extend(_woken(rank, stages, order, next_of, done, last, ready))
    assert all(at == len(mine) for at, mine in zip(next_of, order, strict=True)), "the schedule waits for itself"
    return Simulated(max(clock), max(work), tuple(_held(mine, split) for mine in order))


def _woken(
    rank: int,
    stages: int,
    order: list[list[Work]],
    next_of: list[int],
    done: dict[Work, float],
    last: int,
    waiting: deque[int],
) -> list[int]:
    """Neighbours of a rank that can go on now."""
    able = []
    for other in {(rank + 1) % stages, (rank - 1) % stages} - {rank}:
        if next_of[other] < len(order[other]) and other not in waiting:
            needed = _needs(order[other][next_of[other]], last)
            if needed is None or needed in done:
                able.append(other)
    return able


def _needs(each: Work, last: int) -> Work | None:
    """What must be done, and have come here, before."""
    if each.kind == "F":
        return Work("F", each.part - 1, each.micro_batch) if each.part else None
    if each.kind == "B":
        return Work("B", each.part + 1, each.micro_batch) if each.part < last else Work("F", last, each.micro_batch)
    return Work("B", each.part, each.micro_batch)


def _held(mine: list[Work], split: bool) -> int:
    """The most passes forward of which activations are kept at once; they are free after the last pass backward."""
    held = most = 0
    for each in mine:
        held += (each.kind == "F") - (each.kind == ("W" if split else "B"))
        most = max(most, held)
    return most


def bubble(schedule: Schedule, stages: int, forward: float, backward: float, weights: float = 0.0) -> float:
    """Idle seconds of a step as theory has them, where every part takes the same and hands over in no time: (p − 1)·(F
    + B) of one part (Narayanan et al. 2021, section 2.2); zero-bubble (p − 1)·(F + B − 2W) where B is the whole
    backward pass and W that for weights (Qi et al. 2023, table 1).

    Exact where micro-batches are a multiple of the stages, and for zero-bubble where F, B − W and W take the same.
    """
    return (stages - 1) * (forward + backward - (2 * weights if schedule == "zero-bubble" else 0.0))


def split_layers(layers: int, parts: int, head: float) -> list[int]:
    """Layers of each part of the network so that the heaviest is as light as it can be, where the output matrix, on the
    last part, weighs as much as `head` layers."""
    last = min(max(0, math.ceil((layers + head) / parts - head)), layers) if parts > 1 else layers
    others = max(1, parts - 1)
    shares = [(layers - last) // others + (number < (layers - last) % others) for number in range(parts - 1)]
    return [*shares, last]
