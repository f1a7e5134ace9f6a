"""Rotary positions (RoPE) and how they are stretched to longer contexts."""

from __future__ import annotations

import math

import torch
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


def rotations(config: GPTConfig, length: int) -> Tensor:
    """RoPE's e^{i·t·θ_j} of the first `length` positions, (length,E/2) complex: θ_j = rope_base^{-2j/E} (Su et al.
    2021, eq. 15). Empty without RoPE.

    For a context s times the `rope_trained` one: linear divides all θ by s (Chen et al. 2023); ntk raises the base by
    s^{E/(E−2)}; yarn divides only the slow ones, between α = 1 and β = 32 turns within the trained context gradually,
    and sharpens attention by making queries and keys longer by 0.1·ln s + 1 (Peng et al. 2023, eq. 20 to 22 and section
    3.4).
    """
    if config.positions != "rope":
        return torch.empty(0)
    half = config.head_width // 2
    steps = torch.arange(half, dtype=torch.float64) / half
    stretch = config.context / config.rope_trained if config.rope_scaling != "none" else 1.0
    theta = config.rope_base**-steps
    size = 1.0
    if config.rope_scaling == "linear":
        theta = theta / stretch
    elif config.rope_scaling == "ntk":
        theta = (config.rope_base * stretch ** (half / max(half - 1, 1))) ** -steps
    elif config.rope_scaling == "yarn":
        turns = config.rope_trained * theta / (2 * math.pi)
        keep = ((turns - 1) / (32 - 1)).clamp(0, 1)
        theta = theta * (keep + (1 - keep) / stretch)
        size = 0.1 * math.log(stretch) + 1
    angles = torch.arange(length, dtype=torch.float64)[:, None] * theta
    return torch.polar(torch.full_like(angles, size), angles).to(torch.complex64)
