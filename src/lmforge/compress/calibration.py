"""What calibration rows show of the inputs of matrices: rows packed as training packs them, never padded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmforge.compress.method import CalibrationBatch
from lmforge.compress.smooth import watch_inputs
from lmforge.model.gpt import GPT


def input_grams(model: GPT, calibration: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """Σ x xᵀ over all calibration tokens of the input of each linear layer: (I,I) float32 by name; layers that share
    their input share the matrix's values, not its memory. An expert that no token chose has none."""
    grams: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x = x.float()
        if name in grams:
            grams[name].addmm_(x.t(), x)
        elif len(x):
            grams[name] = x.t() @ x

    with torch.no_grad():
        watch_inputs(model, calibration, see)
    return grams
