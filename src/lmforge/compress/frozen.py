"""Which modules hold integers, and so can be neither trained nor cut."""

from __future__ import annotations

from torch import nn

from lmforge.compress.int8 import QuantizedEmbedding, QuantizedLinear
from lmforge.errors import InputError


class Frozen(nn.Module):
    """A module whose weights are stored as integers: no gradient reaches them."""


def refuse_frozen(model: nn.Module, what: str, remedy: str) -> None:
    """Raise where a module of `model` holds integers.

    Raises:
        InputError: "WHAT before it is quantised, and MODULE is: REMEDY".
    """
    for name, module in model.named_modules():
        if isinstance(module, Frozen | QuantizedLinear | QuantizedEmbedding):
            raise InputError(f"compress.steps: {what} before it is quantised, and {name} is; {remedy}")
