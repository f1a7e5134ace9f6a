"""How far the range goes in which a layer's inputs are rounded to 8 bits, found on calibration text.

One number a layer makes a product one call; what lies beyond it is cut. The largest input spans all; a percentile or
the least squared error (Nagel et al. 2021, section 3.1) cut a few inputs so that all others are rounded more finely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmforge.compress.int8 import SHARES, TINY
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.smooth import largest_inputs, signed_input, watch_inputs
from lmforge.model.gpt import GPT

# rounding a layer's calibration inputs with one clip_range may cost this much of their norm; else each token gets its
# own
COARSE = 0.02
BINS = 4096  # of the histogram of a layer's inputs


def find_clip_ranges(
    model: GPT,
    calibration: Sequence[CalibrationBatch],
    largest: Mapping[str, Tensor] | None = None,
    kind: str = "max",
    percentile: float = 99.99,
    without: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Per linear layer the range of its inputs, by `kind` as in [compress]: the largest calibration input, a percentile
    of their sizes, or the range of least squared error; 0, each token's own, where rounding so costs more than COARSE
    (or the kind is "token").

    `largest`: max|x_j| of each layer's channels, where `smooth` has just found them. `without`: input columns of a
    layer that are not rounded.
    """
    without = without or {}
    if largest is None:
        largest = largest_inputs(model, calibration)
    rest = {name: _left_out(channels, without.get(name)) for name, channels in largest.items()}
    ranges = {name: float(channels.amax()) for name, channels in rest.items()}
    if kind == "token":
        return dict.fromkeys(ranges, 0.0)
    if kind != "max":
        counts = _histograms(model, calibration, ranges, without)
        for name, reach in ranges.items():
            signed = signed_input(model, name)
            ranges[name] = reach * (
                _share_within(counts[name], percentile / 100)
                if kind == "percentile"
                else _share_of_least_error(counts[name], 63 if signed else 127)
            )
    error, energy = dict.fromkeys(ranges, 0.0), dict.fromkeys(ranges, 0.0)

    def see(name: str, x: Tensor) -> None:
        reach = max(ranges[name], TINY)
        step, kept = reach / (63 if signed_input(model, name) else 127), _left_out(x, without.get(name))
        error[name] += float(((kept / step).round_().mul_(step).clamp_(-reach, reach) - kept).square().sum())
        energy[name] += float(kept.square().sum())

    watch_inputs(model, calibration, see)
    return {name: reach if error[name] <= COARSE**2 * energy[name] else 0.0 for name, reach in ranges.items()}


def _left_out(x: Tensor, columns: Tensor | None) -> Tensor:
    return x if columns is None else x.index_fill(-1, columns, 0.0)


def _histograms(
    model: GPT, calibration: Sequence[CalibrationBatch], ranges: Mapping[str, float], without: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """How many of a layer's inputs have sizes in each BINS-th part of its range: (BINS,) each."""
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in ranges}

    def see(name: str, x: Tensor) -> None:
        sizes = _left_out(x, without.get(name)).abs().flatten().float()
        counts[name] += torch.histc(sizes, BINS, 0.0, max(ranges[name], TINY)).double()

    watch_inputs(model, calibration, see)
    return counts


def _share_within(counts: Tensor, share: float) -> float:
    """The part of the range below which this share of the inputs lies."""
    below = counts.cumsum(0) >= share * counts.sum()
    return (int(below.int().argmax()) + 1) / BINS


def _share_of_least_error(counts: Tensor, levels: int) -> float:
    """The part of the range with the least squared error: what is within is rounded, and misses step²/12 on average;
    what is beyond is cut."""
    sizes = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    errors = {}
    for share in [*SHARES, *(share * SHARES[-1] for share in SHARES[1:])]:
        cut = (sizes - share).clamp(min=0).square()
        errors[share] = float((counts * torch.where(sizes <= share, (share / levels) ** 2 / 12, cut)).sum())
    return min(errors, key=errors.__getitem__)
