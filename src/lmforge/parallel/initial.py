"""First values that know no layout: each is a function of the seed, its parameter's name and its place in the whole
parameter, so that any process draws its part alone and every layout begins like one process.

    (seed, name) ─BLAKE2─▶ key ┐
    place // 8 ────▶ counter ──┴─Philox─▶ 8 numbers of 32 bits ─Box–Muller─▶ 8 normal values

Counter-based generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Standard deviations and
constants are those of `GPT.initialise`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmforge.model.first_values import constant, deviation
from lmforge.model.gpt import GPT
from lmforge.parallel.shares import first_row, local
from lmforge.parallel.spread import Spread

BLOCK = 8  # values of one counter
AT_ONCE = 1 << 20  # values that are drawn together


def normal(seed: int, name: str, begin: int, end: int) -> NDArray[np.float32]:
    """Standard normal values of places begin … end − 1 of a parameter, in reading order."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    first = begin // BLOCK
    blocks = -(-end // BLOCK) - first
    raw = np.random.Philox(counter=first, key=key).random_raw(blocks * BLOCK // 2)
    bits = raw.astype("<u8", copy=False).view("<u4").astype(np.float64)
    size = np.sqrt(-2 * np.log((bits[0::2] + 1) / 2**32))  # up to 6.7
    angle = bits[1::2] * (2 * math.pi / 2**32)
    values = np.stack((size * np.cos(angle), size * np.sin(angle)), 1).ravel()
    return values[begin - first * BLOCK : end - first * BLOCK].astype(np.float32)


@torch.no_grad()
def draw_rows(into: Tensor, seed: int, name: str, width: int, rows: Iterable[int], columns: Iterable[range]) -> None:
    """Fill a matrix with the values of some rows and columns of a whole one whose rows are `width` values long."""
    wanted, slices = list(rows), [slice(each.start, each.stop) for each in columns]
    few = max(1, AT_ONCE // max(1, width))
    done = 0
    while done < len(wanted):
        count = 1
        while count < few and done + count < len(wanted) and wanted[done + count] == wanted[done] + count:
            count += 1
        flat = normal(seed, name, wanted[done] * width, (wanted[done] + count) * width).reshape(count, width)
        part = np.concatenate([flat[:, each] for each in slices], 1)
        into[done : done + count].copy_(torch.from_numpy(part).view_as(into[done : done + count]))
        done += count


@torch.no_grad()
def initialise_by_index(
    model: GPT, spread: Spread, seed: int, base_width: int | None = None, output_multiplier: float = 1.0
) -> None:
    """Give a network that is laid out already its first values; what `GPT.initialise` leaves as it was made stays."""
    ratio = (base_width or model.config.d_model) / model.config.d_model
    for name, parameter in model.named_parameters():
        shape, own = spread.shape(name, parameter), local(parameter)
        std = deviation(model.config, name, shape, ratio)
        value = constant(model.config, name, ratio * output_multiplier)
        if std is None:
            if value is not None:
                own.fill_(value)
            continue
        cut, width = spread[name].cut, math.prod(shape[1:])
        mine = () if cut is None else cut.parts[spread.mesh.index(cut.axis)]
        rows = [row for part in mine for row in part] if cut and cut.dim == 0 else range(shape[0])
        columns = mine if cut and cut.dim == 1 else (range(width),)
        begin = first_row(parameter)
        rows = rows[begin : begin + len(own)]
        # experts of a layer begin equal (`Experts.alike`)
        alias = re.sub(r"\.experts\.\d+\.", ".experts.0.", name)
        draw_rows(own, seed, alias, width, rows, columns)
        own.mul_(std)
