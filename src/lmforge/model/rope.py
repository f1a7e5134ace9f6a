"""Rotary positions (RoPE) and how they are stretched to longer contexts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.model.config import GPTConfig


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Turn each neighbouring pair of x (B,T,H,E), read as a complex number, by rotations (T,E/2) or (B,T,E/2): RoPE (Su
    et al. 2021, eq. 34).

    Pairs are (0,1), (2,3), … as in the paper. One complex product instead of five real passes.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    pairs = torch.view_as_complex(x.to(exact).unflatten(-1, (-1, 2)))
    turned = pairs * rotations.unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def rotations(config: GPTConfig, length: int, local: bool = False) -> Tensor:
    """RoPE's e^{i·t·θ_j} of the first `length` positions, (length,E/2) complex: θ_j = rope_base^{-2j/R} (Su et al.
    2021, eq. 15) for the R of a head's E channels that turn; the others stand still (θ = 0). Empty without RoPE.
    `local`: those of window layers where they have a base of their own, never stretched.

    For a context s times the `rope_trained` one, or s = `rope_factor`: linear divides all θ by s (Chen et al. 2023);
    ntk raises the base by s^{E/(E−2)}; yarn divides only the slow ones, between α = 1 and β = 32 turns within the
    trained context gradually, and sharpens attention by making queries and keys longer by 0.1·ln s + 1 (Peng et al.
    2023, eq. 20 to 22 and section 3.4); llama3 divides in the same way, between `rope_low` and `rope_high` turns, and
    sharpens nothing (Grattafiori et al. 2024, section 3.4.2).
    """
    if config.positions != "rope":
        return torch.empty(0)
    half = config.rotary_width // 2
    steps = torch.arange(half, dtype=torch.float64) / half
    theta, size = (config.rope_local_base**-steps, 1.0) if local else _stretched(config, steps)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * theta
    turns = torch.polar(torch.full_like(angles, size), angles).to(torch.complex64)
    return F.pad(turns, (0, config.head_width // 2 - half), value=1.0) if half < config.head_width // 2 else turns


def _stretched(config: GPTConfig, steps: Tensor) -> tuple[Tensor, float]:
    """θ of each pair (R/2,) for steps j/(R/2), and the length of the rotations."""
    half, kind = len(steps), config.rope_scaling
    stretch = config.rope_stretch if kind != "none" else 1.0
    theta = config.rope_base**-steps
    size = config.rope_magnitude
    if config.rope_divisors:
        theta = theta / torch.tensor(config.rope_divisors, dtype=torch.float64)
    if kind == "linear":
        theta = theta / stretch
    elif kind == "ntk":
        theta = (config.rope_base * stretch ** (half / max(half - 1, 1))) ** -steps
    elif kind in ("yarn", "llama3"):
        low, high = (1, 32) if kind == "yarn" else (config.rope_low, config.rope_high)
        turns = config.rope_trained * theta / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        theta = theta * (keep + (1 - keep) / stretch)
        size *= 0.1 * math.log(stretch) + 1 if kind == "yarn" else 1.0
    return theta, size
