"""What failures leave of a long training: goodput, the share of the time that goes into steps which count.

    steps ─▶ checkpoint every so often ─▶ a device fails ─▶ restart (a spare node, or wait for a repair) ─▶ steps again
                                              │
                                              └ what was done since the last checkpoint is lost

A simulation of events, beside the formula of Daly 2006 that gives the same where it applies (endless spares, no slow
nodes).
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import random

# Hours of one device between interruptions of the whole job: 419 unexpected ones in 54 days on 16,384 H100
# (Dubey et al. 2024, table 5)
DEVICE_HOURS = 54 * 24 * 16_384 / 419
PARTS = ("checkpoints", "lost", "restarts", "waiting", "slowed")  # that do not count


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong on a cluster, and what it takes then. Times in seconds.

    failure: mean time between failures of one node. checkpoint: that training stands still to save one. restart: from a
    failure to the first step again, with a spare node. repair: until a failed node is a spare. spares: nodes that wait.
    slow: mean time between two moments at which one node becomes slow (0: never), which makes the whole job take
    `slower` times as long until it is noticed, after `noticed`, and the node replaced.
    """

    nodes: int
    failure: float
    checkpoint: float
    restart: float = 600.0
    repair: float = 86_400.0
    spares: int = 0
    slow: float = 0.0
    slower: float = 1.3
    noticed: float = 3600.0

    @property
    def between(self) -> float:
        """Mean seconds between failures of any node."""
        return self.failure / self.nodes


@dataclasses.dataclass(frozen=True)
class Goodput:
    """A training of `work` seconds of steps and what it took, in seconds by what they went to."""

    work: float
    checkpoints: float
    lost: float  # steps that were done again
    restarts: float
    waiting: float  # for a node where no spare was left
    slowed: float
    failures: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.work + self.checkpoints + self.lost + self.restarts + self.waiting + self.slowed

    @property
    def share(self) -> float:
        """Of the time that counts."""
        return self.work / self.seconds if self.work else 1.0


def young(checkpoint: float, between: float) -> float:
    """Seconds of steps between two checkpoints that lose least, to first order (Young 1974): √(2·δ·M)."""
    return math.sqrt(2 * checkpoint * between)


def daly(checkpoint: float, between: float) -> float:
    """The same to higher order (Daly 2006, eq. 37): √(2δM)·(1 + √(δ/2M)/3 + (δ/2M)/9) − δ; M where δ ≥ 2M."""
    if checkpoint >= 2 * between:
        return between
    part = checkpoint / (2 * between)
    return young(checkpoint, between) * (1 + math.sqrt(part) / 3 + part / 9) - checkpoint


def expected_seconds(work: float, interval: float, faults: Faults) -> float:
    """What a training takes on the average, failures at any time included, with endless spares and no slow nodes (Daly
    2006, eq. 20): M·e^(R/M)·(e^((τ+δ)/M) − 1)·T/τ."""
    m = faults.between
    return m * math.exp(faults.restart / m) * math.expm1((interval + faults.checkpoint) / m) * work / interval


def simulate(work: float, interval: float, faults: Faults, seed: int = 0) -> Goodput:
    """A training of `work` seconds of steps, saved after every `interval` of them, event by event.

    Failures come at random at a constant rate; those in a restart or while saving undo these too.
    """
    draw = random.Random(seed)
    spent = {"checkpoints": 0.0, "lost": 0.0, "restarts": 0.0, "waiting": 0.0, "slowed": 0.0}
    repairs: list[float] = []  # when failed nodes are back
    now, saved, spares, failures = 0.0, 0.0, faults.spares, 0
    fails = draw.expovariate(1 / faults.between)
    slows = draw.expovariate(faults.nodes / faults.slow) if faults.slow else math.inf
    slow_until = 0.0
    while saved < work:
        piece = min(interval, work - saved)
        save = faults.checkpoint if saved + piece < work else 0.0
        while slows < now:  # one that begins while the job stands still is there when it goes on
            slow_until = max(slow_until, slows + faults.noticed)
            slows += draw.expovariate(faults.nodes / faults.slow)
        more, slow_until, slows = _slowed(now, piece, slow_until, slows, faults, draw)
        end = now + piece + more + save
        if fails >= end:
            spent["slowed"] += more
            spent["checkpoints"] += save
            now, saved = end, saved + piece
            continue
        spent["lost"] += fails - now
        now, up = fails, False
        slow_until = now  # all that was slow is replaced in a restart
        while not up:
            failures += 1
            heapq.heappush(repairs, now + faults.repair)
            while repairs and repairs[0] <= now:
                heapq.heappop(repairs)
                spares += 1
            if spares:
                spares -= 1
            else:
                back = heapq.heappop(repairs)
                spent["waiting"] += back - now
                now = back
            fails = now + draw.expovariate(1 / faults.between)
            up = fails >= now + faults.restart
            took = faults.restart if up else fails - now
            spent["restarts"] += took
            now += took
    return Goodput(work, **spent, failures=failures)


def _slowed(
    now: float, piece: float, slow_until: float, slows: float, faults: Faults, draw: random.Random
) -> tuple[float, float, float]:
    """(seconds that slow nodes add to a piece of work, until when it is slow, when the next node becomes slow)."""
    done, at = 0.0, now
    while done < piece:
        if at < slow_until:
            step = min(slow_until - at, (piece - done) * faults.slower)
            done += step / faults.slower
        else:
            step = min(slows - at, piece - done)
            done += step
        at += step
        if at >= slows:
            slow_until = max(slow_until, slows + faults.noticed)
            slows += draw.expovariate(faults.nodes / faults.slow)
    return at - now - piece, slow_until, slows
