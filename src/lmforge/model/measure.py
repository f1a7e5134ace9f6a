"""What modules hold and do, as they say themselves: bytes of weights, multiplications for a token.

A module that knows better than its tensors (packed integers, matrices of which a token meets a few) has a method of one
of these names; of torch's own, `nn.Linear` is counted here; every other module is the sum of its parts.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class WeightBytes(Protocol):
    """A module that says what it holds."""

    def weight_bytes(self) -> int:
        """Bytes of its weights, those of the modules in it included."""


@runtime_checkable
class MacsPerToken(Protocol):
    """A module that says what it does."""

    def macs_per_token(self) -> int:
        """Multiplications, each with its addition, of one token's vector by weights; those of modules in it
        included."""


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and of the buffers that are saved with it; what is shared counts once."""
    held: dict[int, int] = {}

    def visit(part: nn.Module) -> int:
        if isinstance(part, WeightBytes):
            return part.weight_bytes()
        saved = [tensor for name, tensor in part._buffers.items() if name not in part._non_persistent_buffers_set]
        for tensor in (*part._parameters.values(), *saved):
            if tensor is not None:
                held[id(tensor)] = tensor.nbytes
        return sum(map(visit, part.children()))

    said = visit(module)
    return said + sum(held.values())


def macs_per_token(module: nn.Module) -> int:
    """Multiplications of one token's vector by a module's matrices in the forward pass. What attention does between
    tokens depends on how many there are and is not in it (`lmforge.plan.cost`), nor are lookups, norms and
    activations."""
    if isinstance(module, MacsPerToken):
        return module.macs_per_token()
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return sum(map(macs_per_token, module.children()))
