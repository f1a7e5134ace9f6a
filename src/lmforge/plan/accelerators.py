"""Accelerators whose data sheets are known, and clusters of them: what a plan needs where the machine is not this one.

Speeds are peaks of the data sheets. `sustained` is the share of the matrix peak that large products reach, which power
and clocks bound below 1; network speeds are bytes a second and direction of one accelerator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lmforge.errors import InputError


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device and its links.

    flops, fp8_flops: operations/s of 16-bit and 8-bit products (0: no 8-bit units); memory_bandwidth bytes/s;
    fast_link: bytes/s to the others of its node (`node` devices), slow_link: to other nodes; watts at full load,
    server and cooling included; dollars an hour as clouds listed it in 2025.
    """

    name: str
    flops: float
    memory_bytes: float
    memory_bandwidth: float
    fast_link: float
    slow_link: float
    node: int
    sustained: float
    fp8_flops: float = 0.0
    watts: float = 700.0
    dollars: float = 2.0


# NVIDIA's data sheets of A100, H100, H200, H800, B200, V100; Jouppi et al. 2023 (TPU v4), Google's documents (v5p).
# `sustained`: 8192³ products in bfloat16 as published by the vendors' own benchmarks and by Hagemann et al. 2023.
ACCELERATORS: Mapping[str, Accelerator] = {
    each.name: each
    for each in (
        Accelerator("v100", 125e12, 32e9, 0.9e12, 150e9, 12.5e9, 8, 0.80, watts=450, dollars=1.0),
        Accelerator("a100-40gb", 312e12, 40e9, 1.56e12, 300e9, 25e9, 8, 0.85, watts=600, dollars=1.3),
        Accelerator("a100", 312e12, 80e9, 2.04e12, 300e9, 25e9, 8, 0.85, watts=600, dollars=1.6),
        Accelerator("h100", 989e12, 80e9, 3.35e12, 450e9, 50e9, 8, 0.65, 1979e12, watts=1100, dollars=2.6),
        Accelerator("h800", 989e12, 80e9, 3.35e12, 200e9, 50e9, 8, 0.65, 1979e12, watts=1100, dollars=2.0),
        Accelerator("h200", 989e12, 141e9, 4.8e12, 450e9, 50e9, 8, 0.66, 1979e12, watts=1100, dollars=3.2),
        Accelerator("b200", 2250e12, 192e9, 8.0e12, 900e9, 50e9, 8, 0.74, 4500e12, watts=1700, dollars=4.5),
        Accelerator("tpu-v4", 275e12, 32e9, 1.2e12, 150e9, 6e9, 4096, 0.85, watts=350, dollars=1.6),
        Accelerator("tpu-v5p", 459e12, 95e9, 2.77e12, 300e9, 12e9, 8960, 0.82, watts=600, dollars=2.2),
    )
}


@dataclasses.dataclass(frozen=True)
class Cluster:
    """So many accelerators of one kind."""

    accelerator: Accelerator
    devices: int

    @property
    def flops(self) -> float:
        """Peak operations/s of all together."""
        return self.accelerator.flops * self.devices


# "TPU clusters of 1.2 EFLOP/s" of the description of GPT-4 that lmforge follows: so many TPU v4 reach that peak.
DESCRIPTION = Cluster(ACCELERATORS["tpu-v4"], math.ceil(1.2e18 / ACCELERATORS["tpu-v4"].flops))


def cluster_of(text: str) -> Cluster:
    """`NAME` (one device), `NAMExCOUNT` such as `h100x64`, or `description`.

    Raises:
        InputError: no such accelerator (names those that are known), or no number of them.
    """
    if text == "description":
        return DESCRIPTION
    name, _, count = text.lower().partition("x") if text.lower() not in ACCELERATORS else (text.lower(), "", "")
    if name not in ACCELERATORS or (count and (not count.isdigit() or int(count) < 1)):
        raise InputError(
            f"--hardware {text}: not known; give NAME or NAMExCOUNT (h100x64) with one of {', '.join(ACCELERATORS)}, "
            "or description"
        )
    return Cluster(ACCELERATORS[name], int(count or 1))
