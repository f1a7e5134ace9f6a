"""How much of what a network computes each of its parts is: measured on calibration rows, never on what is scored.

gradient × weight, summed over a part and squared   what removing it costs, to first order
                                                    (Molchanov et al. 2019, "Importance estimation for neural
                                                    network pruning", eq. 8, with groups)
|weight| × norm of its input                        (Sun et al. 2023, "Wanda", eq. 1)
loss without it                                     of whole layers
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.smooth import watch_inputs
from lmforge.model.experts import Experts
from lmforge.model.gpt import GPT


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures of matrices. `columns`, by batch: Σ over rows of weight × gradient of the batch's loss, (I,), kept apart
    so that parts can be summed before they are squared. `squares`: Σ over batches of (weight × gradient)², (O,I), where
    they were asked for. `inputs`: the norm of each input channel of each linear layer, (I,)."""

    columns: tuple[dict[str, Tensor], ...]
    squares: dict[str, Tensor]
    inputs: dict[str, Tensor]


@torch.enable_grad()
def measured(model: GPT, calibration: Sequence[CalibrationBatch], squares: bool = False) -> Measured:
    """All of them, on a few batches; `squares`, which take as much memory as the model, where these are wanted.

    Raises:
        InputError: the model holds integers.
    """
    refuse_frozen(model, "importance is measured", "put the step before it")
    probe = copy.deepcopy(model).eval()
    for parameter in probe.parameters():
        parameter.requires_grad_(True)
    columns: list[dict[str, Tensor]] = []
    summed: dict[str, Tensor] = {}
    for batch in calibration:
        counted = max(1, int(batch.counts.sum()))
        (probe.loss(batch.inputs, batch.targets, batch.documents) / counted).backward()
        columns.append({})
        for name, parameter in probe.named_parameters(remove_duplicate=False):
            if parameter.grad is None or parameter.ndim != 2:
                continue
            product = parameter.detach() * parameter.grad
            columns[-1][name] = product.sum(0)
            if squares:
                summed[name] = summed.get(name, 0) + product.square()
        probe.zero_grad(set_to_none=True)
    probe.requires_grad_(False)
    return Measured(tuple(columns), summed, input_norms(probe, calibration))


@torch.no_grad()
def input_norms(model: GPT, calibration: Sequence[CalibrationBatch]) -> dict[str, Tensor]:
    """√Σ x² of each input channel of each linear layer over all tokens: (I,) each. An expert that no token chose has
    none: it is left out."""
    squares: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        squares[name] = squares.get(name, 0) + x.float().square().sum(0)

    watch_inputs(model, calibration, see)
    return {name: square.sqrt() for name, square in squares.items()}


def weight_scores(model: GPT, name: str, kind: str, scores: Measured | None) -> Tensor:
    """The importance of each weight of layer `name`: (O,I). kind: magnitude, activation or taylor."""
    weight = model.get_parameter(f"{name}.weight").detach()
    if kind == "activation":
        assert scores is not None
        norm = scores.inputs.get(name)
        return weight.abs() if norm is None else weight.abs() * norm
    if kind == "taylor":
        assert scores is not None
        return scores.squares.get(f"{name}.weight", torch.zeros_like(weight))
    return weight.abs()


def _columns(name: str, scores: Measured, model: GPT) -> Tensor:
    """First-order importance of each input channel of a layer (or of the first matrix of its low-rank pair), per batch:
    (batches, I)."""
    module = model.get_submodule(name)
    name = name if isinstance(module, nn.Linear) else f"{name}.0"
    width = model.get_parameter(f"{name}.weight").shape[1]
    batches = [batch[f"{name}.weight"] for batch in scores.columns if f"{name}.weight" in batch]
    return torch.stack(batches) if batches else torch.zeros(1, width)


def group_scores(model: GPT, layer: int, scores: Measured) -> Tensor:
    """Of each group of heads of a layer (kv_heads,): what the output projection reads of it."""
    shape = model.config.shape_of(layer)
    if not shape.heads:
        return torch.zeros(0)
    columns = _columns(f"blocks.{layer}.attention.out", scores, model)
    return columns.view(len(columns), shape.kv_heads, -1).sum(-1).square().sum(0)


def unit_scores(model: GPT, layer: int, scores: Measured) -> list[Tensor]:
    """Of each feed-forward unit of a layer: (F,) for each expert, or one."""
    return [_columns(f"{name}.down", scores, model).square().sum(0) for name in networks(model, layer)]


def networks(model: GPT, layer: int) -> list[str]:
    """The feed-forward networks of a layer: its experts, or the one; the shared expert is not among them."""
    block = model.blocks[layer]
    if block.ff is None:
        return []
    name = f"blocks.{layer}.ff"
    return (
        [f"{name}.experts.{number}" for number in range(len(block.ff.experts))]
        if isinstance(block.ff, Experts)
        else [name]
    )


def expert_scores(model: GPT, layer: int, scores: Measured) -> Tensor:
    """Of each expert of a layer (X,): what its whole output is worth."""
    each = [_columns(f"{name}.down", scores, model).sum(-1).square().sum() for name in networks(model, layer)]
    return torch.stack(each) if each else torch.zeros(0)


def channel_scores(model: GPT, scores: Measured) -> Tensor:
    """Of each channel of the residual stream (D,): Σ weight × gradient of the matrices that read it."""
    width = model.config.d_model
    total = torch.zeros(width)
    for batch in scores.columns:
        parts = [
            product
            for name, product in batch.items()
            if len(product) == width and any(part in name for part in ("qkv", ".up.", "router", "head"))
        ]
        total += torch.stack(parts).sum(0).square() if parts else 0
    return total


@torch.inference_mode()
def mean_nats(model: GPT, calibration: Sequence[CalibrationBatch]) -> float:
    """Mean loss over the predictions that count."""
    total, counted = 0.0, 0
    for batch in calibration:
        logits = model(batch.inputs, documents=batch.documents)[batch.counts]
        total += float(nn.functional.cross_entropy(logits, batch.targets[batch.counts], reduction="sum"))
        counted += int(batch.counts.sum())
    return total / max(1, counted)


@torch.inference_mode()
def divergence(reference: GPT, model: GPT, calibration: Sequence[CalibrationBatch]) -> float:
    """Mean KL(reference‖model) over the predictions that count (over all, where none does), nats per token."""
    total, counted = 0.0, 0
    for batch in calibration:
        counts = batch.counts if bool(batch.counts.any()) else torch.ones_like(batch.counts)
        p, q = (
            torch.log_softmax(each(batch.inputs, documents=batch.documents)[counts].float(), -1)
            for each in (reference, model)
        )
        total += float((p.exp() * (p - q)).sum())
        counted += int(counts.sum())
    return total / max(1, counted)
