"""What each parameter of a network begins with, by its name (`GPT.initialise` says why)."""

from __future__ import annotations

import math
import re

import torch

from lmforge.model.config import GPTConfig


def constant(config: GPTConfig, name: str, last_gain: float = 1.0) -> float | None:
    """The value that a parameter begins with throughout; None where it is another. `last_gain`: of the last norm."""
    if name.endswith("bias") or name.startswith("ngrams."):
        return 0.0
    if "norm" in name:
        return (last_gain if name == "norm.weight" else 1.0) - config.norm_offset
    return None


def deviation(config: GPTConfig, name: str, shape: torch.Size, ratio: float) -> float | None:
    """The standard deviation that a parameter of a (whole) shape begins with; None where it does not begin at random.
    `ratio`: base width over width."""
    if constant(config, name) is not None:
        return None
    if name.endswith(("features", "pool_keys", "pool_values")):  # made as identity and mean
        return None
    # of a LowRankLinear: their product begins as the matrix would
    thin = re.fullmatch(r"(.*)\.([01])\.weight", name)
    matrix = f"{thin[1]}.weight" if thin else name
    scale = 1 / math.sqrt(2 * config.layers) if matrix.endswith(("attention.out.weight", "down.weight")) else 1.0
    scale *= math.sqrt(ratio) if name.startswith("blocks.") else 1.0
    if thin is None:
        return 0.02 * scale
    rank: int = shape[1 if thin[2] == "1" else 0]
    return math.sqrt(0.02 * scale) / math.sqrt(math.sqrt(rank))
