"""What a student learns of a teacher's distribution: all of it, or the part that a cache on disk keeps.

live      ln p, (N,V)
sampled   S tokens drawn from the proposal p^t with replacement, each weighing p/(S·p^t/Σp^t): Σ w ln q is, in the
          mean over draws, Σ p ln q, and so is its gradient (Anshumann et al. 2025, "Sparse logit sampling", section
          3; importance sampling)
top_k     the k likeliest tokens, their probabilities scaled to sum to 1: cheaper for equal k, but biased: what they
          leave out the student learns to be impossible (section 2 there); the share left out is reported
"""

from __future__ import annotations

import abc
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lmforge.compress.method import CalibrationBatch
from lmforge.compress.teachers import Teacher
from lmforge.record import hash_json, write_atomic


class Target(abc.ABC):
    """The teacher's distribution at the N predictions of a batch that count."""

    @abc.abstractmethod
    def forward(self, student: Tensor) -> Tensor:
        """Σ KL(teacher‖student) in nats, up to a constant; student: its ln q (N,V)."""

    def log_probabilities(self) -> Tensor:
        """ln p (N,V), where all of it is known."""
        raise NotImplementedError

    def hidden(self) -> Tensor:
        """The last layer of a single teacher (N,D), where it is at hand."""
        raise NotImplementedError


class Whole(Target):
    """All of it."""

    def __init__(self, log_p: Tensor, last: Tensor) -> None:
        self.log_p, self.last = log_p, last

    def forward(self, student: Tensor) -> Tensor:
        """As `Target`."""
        divergence: Tensor = (self.log_p.exp() * (self.log_p - student)).sum()
        return divergence

    def log_probabilities(self) -> Tensor:
        """As `Target`."""
        return self.log_p

    def hidden(self) -> Tensor:
        """As `Target`."""
        return self.last


class Weighted(Target):
    """Some tokens (N,S) with weights (N,S)."""

    def __init__(self, tokens: Tensor, weights: Tensor) -> None:
        self.tokens, self.weights = tokens, weights

    def forward(self, student: Tensor) -> Tensor:
        """−Σ w ln q."""
        cross_entropy: Tensor = -(self.weights * student.gather(1, self.tokens)).sum()
        return cross_entropy


class Targets(abc.ABC):
    """Where targets come from."""

    @abc.abstractmethod
    def __call__(self, row: CalibrationBatch) -> Target:
        """Those of the predictions of a batch that count."""

    def details(self) -> dict[str, Any]:
        """What the report says of them."""
        return {}


class LiveTargets(Targets):
    """The teacher runs beside the student."""

    def __init__(self, teacher: Teacher, temperature: float) -> None:
        self.teacher, self.temperature = teacher, temperature

    @torch.no_grad()
    def __call__(self, row: CalibrationBatch) -> Target:
        """As `Targets`."""
        hidden = self.teacher.hidden(row)
        return Whole(self.teacher.log_probabilities(hidden, self.temperature), hidden[0])


class CachedTargets(Targets):
    """A cache on disk, one file for each batch by what is in it; filled when a batch is met for the first time."""

    def __init__(
        self, teacher: Teacher, temperature: float, folder: Path, count: int, proposal: float | None, seed: int
    ) -> None:
        """`proposal` None: the `count` likeliest; else so many draws from p to that power."""
        self.teacher, self.temperature, self.seed = teacher, temperature, seed
        self.count, self.proposal = min(count, teacher.models[0].config.vocab_size), proposal
        if proposal is not None:
            self.count = count
        self.folder = folder / hash_json([teacher.digest(), temperature, self.count, proposal, seed])[:16]
        self.hits = self.misses = self.bytes = 0
        self.kept, self.tokens = 0.0, 0

    def __call__(self, row: CalibrationBatch) -> Target:
        """As `Targets`."""
        file = self.folder / f"{_name(row)}.safetensors"
        if file.is_file():
            tensors = load_file(file)
            self.hits += 1
        else:
            tensors = self._ask(row, int(file.stem[:15], 16))
            write_atomic(file, save(tensors))
            self.misses += 1
        self.bytes += sum(tensor.nbytes for tensor in tensors.values())
        self.kept += float(tensors["kept"].sum())
        self.tokens += len(tensors["kept"])
        device = self.teacher.device
        return Weighted(tensors["tokens"].long().to(device), tensors["weights"].to(device))

    def _ask(self, row: CalibrationBatch, number: int) -> dict[str, Tensor]:
        """What the file holds: tokens (N,S) int32, weights (N,S) float32, and the probability kept of each (N,)."""
        log_p = self.teacher.log_probabilities(self.teacher.hidden(row), self.temperature).float().cpu()
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        if self.proposal is None:
            top, tokens = log_p.exp().topk(self.count, -1)
            kept = top.sum(-1)
            weights = top / kept[:, None]
        else:
            tokens, weights = sample(log_p, self.count, self.proposal, generator)
            kept = torch.ones(len(log_p))  # in the mean over draws nothing is left out
        return {"tokens": tokens.to(torch.int32), "weights": weights.contiguous(), "kept": kept}

    def details(self) -> dict[str, Any]:
        """As `Targets`."""
        figures: dict[str, Any] = {
            "cache": "top_k" if self.proposal is None else "sampled",
            "cache_bytes_per_token": self.bytes / max(1, self.tokens),
            "cache_hits": self.hits,
            "cache_misses": self.misses,
        }
        if self.proposal is None:
            figures["bias"] = f"{100 * (1 - self.kept / max(1, self.tokens)):.3g}% of the probability is left out"
        return figures


def sample(log_p: Tensor, count: int, proposal: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """ln p (N,V) → `count` draws from p^proposal: tokens (N,count) and weights (N,count), E[Σ w·f(token)] = Σ p·f."""
    log_proposal = torch.log_softmax(proposal * log_p, -1)
    tokens = torch.multinomial(log_proposal.exp(), count, replacement=True, generator=generator)
    weights = (log_p - log_proposal).gather(1, tokens).exp() / count
    return tokens, weights


def _name(row: CalibrationBatch) -> str:
    digest = hashlib.sha256()
    for tensor in (row.inputs, row.targets, row.documents):
        digest.update(b"-" if tensor is None else tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
