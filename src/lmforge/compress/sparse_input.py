"""Activations that are set to zero before a matrix, so that its columns for them need not be multiplied.

A step of decoding (`generate.lean`) does not touch these columns where so few tokens share it that it pays; elsewhere
the product is dense. What is left out is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.compress.measure import module_macs
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.predictor import predicted_rows
from lmforge.errors import InputError
from lmforge.generate.lean import kernel_matrix
from lmforge.kernels.matrix import Packed, float_columns
from lmforge.model.gpt import GPT

TOGETHER = 8  # tokens whose zeros are intersected: a batch that is decoded together


class SparseInput(nn.Module):
    """`inner` of x with its small entries set to 0: those up to `threshold` in magnitude (Liu et al. 2024, "TEAL", eq.
    1), or with `count` all but so many of the largest of each token."""

    threshold: Tensor

    def __init__(self, inner: nn.Module, threshold: float = 0.0, count: int = 0) -> None:
        super().__init__()
        self.inner, self.count = inner, count
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        """(…,I) → (…,O)."""
        result: Tensor = self.inner(self.sparse(x))
        return result

    def kernel_matrix(self) -> Packed | None:
        """The matrix with its thinning, as our own kernels take it; None: they do not multiply it."""
        columns = getattr(self.inner, "kernel_columns", None)
        if columns is not None:
            packed: Packed | None = columns()
        elif type(self.inner) is nn.Linear and self.inner.weight.dtype == torch.float32:
            packed = float_columns(self.inner.weight, self.inner.bias)
        else:
            packed = kernel_matrix(self.inner)
        return None if packed is None else packed.thinned(float(self.threshold), self.count)

    def sparse(self, x: Tensor) -> Tensor:
        """x (…,I) with zeros; the gradient passes where it is not 0."""
        if self.count:
            top = x.abs().topk(self.count, -1).indices
            return torch.zeros_like(x).scatter(-1, top, x.gather(-1, top))
        return x.masked_fill(x.abs() <= self.threshold, 0.0)


def sparse_inputs(model: nn.Module) -> dict[str, SparseInput]:
    """The modules of this kind by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseInput)}


def refuse_sparse(model: nn.Module, what: str) -> None:
    """Raise where activations are sparsified.

    Raises:
        InputError: "WHAT before its activations are sparsified".
    """
    for name in sparse_inputs(model):
        raise InputError(
            f"compress.steps: {what} before its activations are sparsified, and those of {name} are; put the step "
            "before sparsify"
        )


@dataclasses.dataclass
class Skipped:
    """Of one matrix: shares of columns that a token, and all of 8 tokens together, would not touch."""

    alone: float = 0.0
    together: float = 0.0
    tokens: int = 0

    def see(self, x: Tensor) -> None:
        """Count the inputs (N,I) of a call."""
        zero = x == 0
        whole = len(x) // TOGETHER * TOGETHER
        union = (
            zero[:whole].view(-1, TOGETHER, x.shape[1]).all(1).float().mean() if whole else zero.all(0).float().mean()
        )
        total = self.tokens + len(x)
        self.alone += (float(zero.float().mean()) - self.alone) * len(x) / total
        self.together += (float(union) - self.together) * len(x) / total
        self.tokens = total


@torch.no_grad()
def skipped(model: GPT, calibration: Sequence[CalibrationBatch]) -> dict[str, Any]:
    """What of the multiplications of sparsified matrices falls on zeros, or on rows that a predictor leaves out, less
    the predictors' own: by matrix, of all of them, and of the model; `at_batch_8`: what does for eight tokens at once,
    which share each column or row that is read."""
    modules, predicted = sparse_inputs(model), predicted_rows(model)
    seen = {name: Skipped() for name in (*modules, *predicted)}
    handles = [
        module.inner.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].see(inputs[0].flatten(0, -2)) if len(inputs[0]) else None
        )
        for name, module in modules.items()
    ] + [
        rows.predictor.register_forward_hook(
            lambda _, inputs, scores, name=name: seen[name].see((scores > 0).flatten(0, -2)) if len(scores) else None
        )
        for name, rows in predicted.items()
    ]
    try:
        for batch in calibration:
            model(batch.inputs, documents=batch.documents)
    finally:
        for handle in handles:
            handle.remove()
    # an expert multiplies for the tokens that chose it alone
    every: dict[str, Any] = {**modules, **predicted}
    work = {name: module_macs(module.inner) * seen[name].tokens for name, module in every.items()}
    own = sum(module_macs(rows.predictor) * seen[name].tokens for name, rows in predicted.items())
    total = max(1, sum(work.values()))
    alone = sum(work[name] * each.alone for name, each in seen.items()) - own
    together = sum(work[name] * each.together for name, each in seen.items()) - own
    tokens = sum(batch.inputs.numel() for batch in calibration)
    return {
        "by_matrix": {name: each.alone for name, each in seen.items()},
        "of_matrices": alone / total,
        "of_model": alone / max(1, tokens * module_macs(model)),
        "of_matrices_at_batch_8": together / total,
    }
