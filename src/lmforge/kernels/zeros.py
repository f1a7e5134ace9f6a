"""Matrices of floats of which most are 0, without these, where that is measured to be the faster way. Of 8 bits there
is no such kernel: it was slower than the whole matrix (docs/internals/log.md)."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.kernels.bits import pack_codes
from lmforge.kernels.build import library
from lmforge.kernels.layout import SPARSE
from lmforge.kernels.matrix import LINE, Packed

LEAST = 0.45  # zeros in a matrix that is tried at all
ROUNDS = 5  # of the measurement: the least of them counts
BETTER = 0.95  # of the whole matrix's time


def zeros_of(weight: Tensor) -> float:
    """The share of zeros."""
    return float((weight == 0).float().mean()) if weight.numel() else 0.0


def sparse(whole: Packed, weight: Tensor) -> Packed:
    """`whole`, the matrix of floats `weight` (O,I), without its zeros. Batches of more than four tokens are multiplied
    whole. The bits of results stay the same."""
    weight = weight.detach()
    rows, cols = weight.shape
    kept = F.pad(weight != 0, (0, -cols % LINE))
    packed = Packed(SPARSE, rows, cols, whole_row=1)
    counts = kept.sum(1)
    packed.keep("data", F.pad(weight[weight != 0], (0, LINE)))  # the last may be read beyond its end
    packed.keep("masks", pack_codes(kept.to(torch.uint8), 1)).keep("starts", counts.cumsum(0) - counts)
    return packed.hold("first", whole)


def without_zeros(whole: Packed, weight: Tensor) -> Packed:
    """`sparse` where it takes less time here for a token than `whole`, which is given else."""
    if library() is None or zeros_of(weight) < LEAST:
        return whole
    tried = sparse(whole, weight)
    return tried if _seconds(tried) < BETTER * _seconds(whole) else whole


def _seconds(packed: Packed) -> float:
    """Processor seconds for a token, the least of some rounds."""
    x = torch.linspace(-1, 1, packed.cols)[None]
    least = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        packed(x)
        least = min(least, time.process_time() - started)
    return least
