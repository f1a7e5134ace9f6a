"""Several sets of weights of one run → the best model of the run, chosen on validation text.

    snapshots, best checkpoint ─▶ singles ─▶ averages of the last k ─▶ greedy soup ─┐
    every step of the end ──────▶ moving average ───────────────────────────────────┼─▶ table ─▶ the best becomes model/
    singles ─▶ mean of their probabilities (k networks at once) ────────────────────┘   └─▶ only in the table

All candidates are scored on the same validation tokens in the same way, and an average must beat the best single
network to be taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.parallel.shares import local
from lmforge.progress import log

Weights = dict[str, Tensor]
HORIZONS = 4  # of the moving average are run through before the end: what came before would weigh e^-4 = 2%


def snapshot_steps(steps: int, count: int) -> list[int]:
    """The steps after which weights are kept for averaging: the last, and others a twentieth of the run apart."""
    apart = max(1, steps // 20)
    return sorted({steps - apart * back for back in range(count) if steps - apart * back > 0})


class MovingAverage:
    """The exponential moving average of a model's weights over the end of a run (Polyak and Juditsky 1992; Izmailov et
    al. 2018).

    Its horizon is a twentieth of the run; it begins `HORIZONS` horizons before the end, so most of a run does not pay
    for it.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.horizon = model, max(1, steps // 20)
        self.begins = max(0, steps - HORIZONS * self.horizon)  # after this many steps
        self.weights: Weights = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps. The first weights count as the start, not as the past: θ̄ += (θ −
        θ̄)/min(n, horizon)."""
        if step <= self.begins:
            return
        parameters = {name: local(parameter) for name, parameter in self.model.named_parameters()}
        if not self.weights:
            trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
            self.weights = {
                name: parameter.detach().clone() for name, parameter in parameters.items() if name in trained
            }
            return
        share = 1 / min(step - self.begins, self.horizon)
        torch._foreach_lerp_(list(self.weights.values()), [parameters[name] for name in self.weights], share)

    def state_dict(self) -> Weights:
        """The average, for the checkpoint; empty where it has not begun."""
        return self.weights

    def load_state_dict(self, weights: Mapping[str, Tensor], /) -> None:
        """Put the average of a checkpoint back; what this process holds of it."""
        devices = {name: parameter.device for name, parameter in self.model.named_parameters()}
        self.weights = {name: weights[name].to(devices[name]) for name in devices if name in weights}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One model that a run can give: from the weights after which steps, and its bits per byte on validation
    text."""

    name: str
    members: tuple[int, ...]
    bits_per_byte: float
    networks: int = 1  # that it takes to predict with it

    def row(self) -> dict[str, Any]:
        """For the record and the report."""
        return dataclasses.asdict(self) | {"members": list(self.members)}


class Choice:
    """Makes the candidates and scores them.

    `load(step)` gives the weights after a step; `score(weights)` the nats of each validation token (0 where one does
    not count), which stand for `text_bytes` bytes of text.
    """

    def __init__(self, load: Callable[[int], Weights], score: Callable[[Weights], Tensor], text_bytes: int) -> None:
        self.load, self.score, self.text_bytes = load, score, text_bytes
        self.nats: dict[tuple[int, ...], Tensor] = {}  # of averages scored so far, by their members
        self.table: list[Candidate] = []

    def choose(
        self, steps: Sequence[int], moving: Weights | None = None, tell: bool = True
    ) -> tuple[Candidate, Weights]:
        """The best candidate made from the weights after `steps`, and from their moving average where there is one; and
        its weights.

        `table` then holds all of them, the best first. Networks that only predict together (`networks` > 1) are scored,
        not chosen. `tell`: say which it is.
        """
        ascending = sorted(steps)
        for step in ascending:
            self._enter(f"step {step}", (step,))
        singles = sorted(self.table, key=lambda candidate: candidate.bits_per_byte)
        for count in range(2, len(ascending) + 1):
            self._enter(f"average of the last {count}", tuple(ascending[-count:]))
        if len(ascending) > 1:
            self._enter("greedy soup", self._soup([single.members[0] for single in singles]))
            self._enter(
                f"{len(ascending)} networks together",
                tuple(ascending),
                mix([self.nats[step,] for step in ascending]),
                len(ascending),
            )
        if moving:
            self._enter("moving average", (), self.score(moving))
        self.table.sort(key=lambda candidate: (candidate.bits_per_byte, len(candidate.members)))
        best = next(candidate for candidate in self.table if candidate.networks == 1)
        if tell:
            log(
                f"train: chose {best.name} ({best.bits_per_byte:.4f} bits per byte; best single "
                f"{singles[0].bits_per_byte:.4f})"
            )
        return best, average(self.load, best.members) if best.members else dict(moving or {})

    def _enter(self, name: str, members: tuple[int, ...], nats: Tensor | None = None, networks: int = 1) -> None:
        bits = (
            float((self._scored(members) if nats is None else nats).double().sum())
            / math.log(2)
            / max(1, self.text_bytes)
        )
        self.table.append(Candidate(name, members, bits, networks))

    def _scored(self, members: tuple[int, ...]) -> Tensor:
        if members not in self.nats:
            self.nats[members] = self.score(average(self.load, members))
        return self.nats[members]

    def _soup(self, best_first: Sequence[int]) -> tuple[int, ...]:
        """Members that each made the average better when added to it, the best single first (Wortsman et al. 2022,
        algorithm 1)."""
        soup: tuple[int, ...] = (best_first[0],)
        for step in best_first[1:]:
            more = tuple(sorted((*soup, step)))
            if self._scored(more).double().sum() < self._scored(soup).double().sum():
                soup = more
        return soup


def average(load: Callable[[int], Weights], members: Iterable[int]) -> Weights:
    """The mean of the weights after some steps; two of them are in memory at once."""
    total: Weights = {}
    members = list(members)
    for step in members:
        weights = load(step)
        total = (
            {name: total[name].add_(weights[name]) for name in total}
            if total
            else {name: w.clone() for name, w in weights.items()}
        )
    return {name: weight.div_(len(members)) for name, weight in total.items()} if len(members) > 1 else total


def mix(nats: Sequence[Tensor]) -> Tensor:
    """The nats of each token when networks predict together by the mean of their probabilities: −ln (1/k) Σ p_i."""
    return math.log(len(nats)) - torch.logsumexp(-torch.stack(list(nats)).double(), dim=0)
