"""A matrix, or two thin ones in its place."""

from __future__ import annotations

from torch import nn


class LowRankLinear(nn.Sequential):
    """x A B + b, A (I,R) and B (R,O), for a matrix (I,O) of rank R: R·(I+O) numbers instead of I·O.

    Denton et al. 2014, "Exploiting linear structure within convolutional networks for efficient evaluation", section
    3.2; of the matrices of a Transformer, Hsu et al. 2022 ("FWSVD"), eq. 3.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, rank: int) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))
        self.in_features, self.out_features = inputs, outputs


def linear(inputs: int, outputs: int, bias: bool, rank: int = 0) -> nn.Linear | LowRankLinear:
    """(…,I) → (…,O): one matrix, or with a rank two thin ones."""
    return LowRankLinear(inputs, outputs, bias, rank) if rank else nn.Linear(inputs, outputs, bias=bias)
