"""The numbers that a step computes with: float32, bfloat16, or float16 under a loss scale. Weights and optimizer are
float32 always.

    float16:  loss × scale ─▶ backward ─▶ gradients / scale ─▶ finite? ── yes ─▶ update; after a while the scale doubles
                                                                └ no ─▶ half the scale, the same batch again
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lmforge.errors import LmforgeError
from lmforge.model.gpt import GPTConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}  # fp8: of what is no matrix of a block
PROMISING = 1.5  # times as fast a product in bfloat16 must be before whole steps in it are measured


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Arithmetic in `precision` ("fp32", "bf16", "fp16", or "fp8", see `fp8`) over float32 weights. It holds in the
    thread that enters it."""
    dtype = DTYPES.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def safest_on_gpu(device: torch.device) -> tuple[str, str]:
    """(precision, why) on a GPU: bfloat16 where its cores multiply it (compute capability 8), else float16 under a loss
    scale."""
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return "bf16", f"compute capability {major}.{minor} multiplies bfloat16"
    return "fp16", f"compute capability {major}.{minor} has no bfloat16"


def bfloat16_gain(config: GPTConfig, tokens: int = 1024, repeats: int = 5) -> float:
    """How many times as fast as in float32 the widest product of a block is in bfloat16 here and now, on one thread,
    casts included.

    A processor with AMX or AVX512-BF16 gives more than 1, one without a thirtieth. Takes milliseconds (a few hundred on
    the latter).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(rows, config.d_model, generator=generator) for rows in (tokens, config.d_ff))

        def seconds(dtype: torch.dtype, times: int) -> float:
            best = math.inf
            for _ in range(times):
                started = time.perf_counter()
                (x.to(dtype) @ weight.to(dtype).t()).float()
                best = min(best, time.perf_counter() - started)
            return best

        return seconds(torch.float32, repeats) / seconds(torch.bfloat16, repeats)
    finally:
        torch.set_num_threads(threads)


class LossScaler:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, section 3.2). The scale is a power of two, so scaling
    is exact.

    A batch whose gradients overflow is not lost: it is computed again with half the scale. That would go on for ever
    where no scale helps, so there is a floor.
    """

    FLOOR, CEILING, DOUBLE_AFTER = 1.0, 2.0**24, 500  # steps without overflow

    def __init__(self) -> None:
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"scale": self.scale, "calm": self.calm}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """As it was at a checkpoint; with an empty state, before the first step."""
        self.scale: float = state.get("scale", 2.0**16)
        self.calm: int = state.get("calm", 0)  # steps since it last changed

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.scale)

    def overflowed(self, step: int) -> None:
        """Halve the scale.

        Raises:
            LmforgeError: it is at its floor; smaller gradients would not be told from zero.
        """
        if self.scale <= self.FLOOR:
            raise LmforgeError(
                f"train: float16 gradients of step {step + 1} overflow even at a loss scale of {self.FLOOR:g}; lower "
                "train.peak_lr, "
                "or train with --set train.precision=bf16 or fp32"
            )
        self.scale, self.calm = self.scale / 2, 0

    def fitted(self) -> None:
        """A step went through; after `DOUBLE_AFTER` of them the scale doubles."""
        self.calm += 1
        if self.calm >= self.DOUBLE_AFTER:
            self.scale, self.calm = min(self.scale * 2, self.CEILING), 0
