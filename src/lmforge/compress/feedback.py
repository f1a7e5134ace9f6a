"""Rounding with error feedback: what a rounded column misses, the columns not yet rounded make up for.

Frantar et al. 2022, "GPTQ", algorithm 1: H = Σ x xᵀ over calibration inputs, damped; with U the upper Cholesky factor
of H⁻¹, a column's error divided by U_ii is taken times row i of U from the columns after it. Column order is that of
the file; scales are of the weights as they are when their group begins.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmforge.compress.groups import Rounded, grid, round_groups, to_codes

BLOCK = 128  # columns between two updates of all that come after them


def round_with_feedback(
    weight: Tensor, gram: Tensor | None, bits: int, group: int, damping: float = 0.01, mask: Tensor | None = None
) -> Rounded:
    """weight (O,I) and the Gram matrix of its inputs (I,I) → as `round_groups`, with less error of the outputs. Without
    a Gram matrix, to the nearest. Weights outside of `mask` (O,I) become 0."""
    if gram is None or float(gram.diagonal().sum()) == 0:
        return round_groups(weight if mask is None else weight * mask, bits, group)
    rest = weight.float().clone()
    upper = inverse_factor(gram, damping)
    width = rest.shape[1]
    codes = torch.empty_like(rest, dtype=torch.uint8)
    scales, zeros = [], []
    block = -(-BLOCK // group) * group
    for begin in range(0, width, block):
        end = min(begin + block, width)
        part, errors = rest[:, begin:end], torch.empty(len(rest), end - begin)
        for place in range(end - begin):
            column = begin + place
            if column % group == 0:
                wanted = part[:, place : place + group]
                kept = wanted if mask is None else wanted * mask[:, column : column + group]
                scale, zero = grid(kept, bits)
                scales.append(scale)
                zeros.append(zero)
            code = to_codes(part[:, place], scales[-1], zeros[-1], bits)
            if mask is not None:
                code = torch.where(mask[:, column], code, zeros[-1])
            codes[:, column] = code
            rounded = (code.float() - zeros[-1].float()) * scales[-1].float()
            errors[:, place] = (part[:, place] - rounded) / upper[column, column]
            part[:, place:] -= errors[:, place, None] * upper[column, column:end]
        rest[:, end:] -= errors @ upper[begin:end, end:]
    return Rounded(codes, torch.stack(scales, 1), torch.stack(zeros, 1))


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of a damped Gram matrix (I,I). An input that was always 0 stands alone.
    Where float64 itself finds no factor, the damping grows tenfold."""
    exact = gram.double()
    diagonal = exact.diagonal()
    exact = exact + torch.diag((diagonal == 0).double() * diagonal.mean())
    for times in range(6):
        damped = exact + torch.eye(len(exact), dtype=exact.dtype) * (damping * 10**times * float(diagonal.mean()))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                factor: Tensor = upper.float()
                return factor
    return torch.eye(len(exact))


def output_error(missed: Tensor, gram: Tensor | None) -> float:
    """Σ over calibration tokens of the squared error of outputs, for an error of weights (O,I): tr(E G Eᵀ)."""
    if gram is None:
        return float(missed.square().sum())
    return float(((missed @ gram) * missed).sum())
