"""A small predictor of which feed-forward units a token needs, so that the rows of the others are not multiplied.

    x (…,D) ─narrow (K,D)─wide (U,K), bias─▶ scores (…,U) ─above 0─▶ rows of ff.up that are multiplied; others give 0

Zeros before ff.down are known only after ff.up was multiplied whole. As Liu et al. 2023 ("Deja Vu", section 4.1) two
thin matrices foretell them from ff.up's own input: a logistic regression of low rank, fitted on calibration text, that
begins at the thin pair nearest to ff.up's own first rows. One margin a layer is then set on tokens that were not fitted
on, so that a stated share of the units that are not 0 is among those foretold (`recall`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lmforge.compress.measure import module_macs
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.smooth import watch_inputs
from lmforge.generate.lean import kernel_matrix
from lmforge.kernels import matrix
from lmforge.kernels.matrix import Packed
from lmforge.model.gpt import GPT
from lmforge.recipe.types import Positive, Section

MOST_TOKENS = 6144  # of calibration that are kept of each layer
HELD = 4  # each fourth of them sets the margin
BATCH, RATE = 512, 5e-3  # tokens of a step, and the rate of the first (AdamW; it falls to 0)


class PredictorSettings(Section):
    """Two thin matrices that foretell which units are not 0."""

    # of the two thin matrices
    rank: Positive = 16
    # share of the units that are not 0 which the predictor finds, on text that it was not fitted on
    recall: Annotated[float, Field(gt=0, lt=1)] = 0.99
    # of its fit
    steps: Positive = 300


class Predictor(nn.Module):
    """Scores of units: x (…,D) → (…,U); above 0: needed."""

    narrow: Tensor
    wide: Tensor
    bias: Tensor

    def __init__(self, width: int, units: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("narrow", torch.zeros(rank, width))
        self.register_buffer("wide", torch.zeros(units, rank))
        self.register_buffer("bias", torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) → (…,U)."""
        return F.linear(F.linear(x, self.narrow), self.wide, self.bias)

    def kernel_pair(self) -> Packed:
        """The two as our own kernels take them."""
        return matrix.pair(matrix.floats(self.narrow), matrix.floats(self.wide, self.bias))

    def macs_per_token(self) -> int:
        """Multiply-accumulates of both for a token."""
        return self.narrow.numel() + self.wide.numel()


class PredictedRows(nn.Module):
    """ff.up, of which a token gets the rows of the units that are foretold for it; the others give 0, and so does the
    unit. Of gated units it is both of their rows."""

    def __init__(self, inner: nn.Module, predictor: Predictor) -> None:
        super().__init__()
        self.inner, self.predictor = inner, predictor

    def forward(self, x: Tensor) -> Tensor:
        """(…,D) → (…,O)."""
        y: Tensor = self.inner(x)
        needed = self.predictor(x) > 0
        apart = y.shape[-1] // needed.shape[-1]
        y = y * needed.repeat(*[1] * (y.ndim - 1), apart)
        return y

    def kernel_matrix(self) -> Packed | None:
        """The matrix with its predictor, as our own kernels take it; None: they do not multiply it."""
        packed, pair = kernel_matrix(self.inner), self.predictor.kernel_pair()
        if packed is None:
            return None
        apart = getattr(self.inner, "unpacked", None)  # of 8 bits: rows can be read alone, where they lie row by row
        return matrix.chosen(packed.whole, pair, *(apart() if apart is not None else ()))


def predicted_rows(model: nn.Module) -> dict[str, PredictedRows]:
    """The modules of this kind by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PredictedRows)}


@dataclasses.dataclass
class Fit:
    """A predictor; its recall and the share of units that it lets through on tokens that it was not fitted on."""

    predictor: Predictor
    recall: float
    share: float


@torch.enable_grad()
def fit(x: Tensor, needed: Tensor, weight: Tensor, settings: PredictorSettings, seed: int) -> Fit:
    """x (N,D) inputs of ff.up, needed (N,U) bool, weight (U,D) its first rows → the fitted predictor."""
    held = torch.arange(len(x)) % HELD == HELD - 1
    (inputs, labels), units = (x[~held], needed[~held]), needed.shape[1]
    rank = min(settings.rank, units, x.shape[1])
    predictor = Predictor(x.shape[1], units, rank)
    u, sigma, vt = torch.linalg.svd(weight.float(), full_matrices=False)
    root = sigma[:rank].sqrt()
    narrow, wide = root[:, None] * vt[:rank], u[:, :rank] * root
    spread = (inputs @ narrow.t() @ wide.t()).std(0).clamp(min=1e-6)
    rate = labels.float().mean(0).clamp(1e-3, 1 - 1e-3)
    parts = [narrow, wide / spread[:, None], (rate / (1 - rate)).log()]
    parts = [part.clone().requires_grad_(True) for part in parts]
    optimizer = torch.optim.AdamW(parts, lr=RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(settings.steps):
        rows = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=generator)
        scores = F.linear(F.linear(inputs[rows], parts[0]), parts[1], parts[2])
        F.binary_cross_entropy_with_logits(scores, labels[rows].float()).backward()
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / settings.steps)
        optimizer.step()
        optimizer.zero_grad()
    predictor.narrow, predictor.wide, predictor.bias = (part.detach() for part in parts)
    return _with_margin(predictor, x[held], needed[held], settings.recall)


@torch.no_grad()
def _with_margin(predictor: Predictor, x: Tensor, needed: Tensor, recall: float) -> Fit:
    """Move its bias so that it finds this share of what is needed."""
    scores = predictor(x)
    found = scores[needed].sort().values
    if len(found):
        least = found[int((1 - recall) * len(found))]
        predictor.bias -= least - 1e-4 * (1 + least.abs())  # so that this one is above 0, whatever the order of sums
        scores = predictor(x)
    chosen = scores > 0
    return Fit(predictor, float((chosen & needed).sum() / needed.sum().clamp(min=1)), float(chosen.float().mean()))


def add_predictors(
    model: GPT,
    downs: Sequence[str],
    settings: PredictorSettings,
    calibration: Sequence[CalibrationBatch],
    seed: int,
) -> dict[str, Any]:
    """Put a predictor before the ff.up of each of `downs` whose input is sparse, in place, where that saves
    multiplications; returns what it found: by layer rank, recall and the share of rows that are multiplied."""
    ups = {name: f"{name.removesuffix('down')}up" for name in downs}
    ups = {name: up for name, up in ups.items() if type(model.get_submodule(up)) is nn.Linear}
    seen: dict[str, list[Tensor]] = {name: [] for pair in ups.items() for name in pair}
    counts = dict.fromkeys(seen, 0)
    inner = {f"{name}.inner": name for name in ups} | {up: up for up in ups.values()}

    def see(name: str, x: Tensor) -> None:
        name = inner.get(name, "")
        if name in seen and counts[name] < MOST_TOKENS:
            x = x[: MOST_TOKENS - counts[name]]
            counts[name] += len(x)
            seen[name].append(x != 0 if name in ups else x.float())

    with torch.no_grad():
        watch_inputs(model, calibration, see)
    found: dict[str, Any] = {}
    for down, up in ups.items():
        if counts[up] < 2 * HELD:
            continue  # an expert that calibration hardly reached
        layer = model.get_submodule(up)
        assert isinstance(layer, nn.Linear)
        needed = torch.cat(seen[down])
        fitted = fit(torch.cat(seen[up]), needed, layer.weight[: needed.shape[1]].detach(), settings, seed)
        whole = module_macs(layer)
        left = fitted.share * whole + fitted.predictor.macs_per_token()
        found[up] = {"recall": fitted.recall, "rows": fitted.share, "macs": left / whole}
        if left < whole:
            model.set_submodule(up, PredictedRows(layer, fitted.predictor))
        else:
            found[up]["note"] = "no gain: the rows that it lets through and its own products are more than the matrix"
    return found


def put_predictor(model: GPT, up: str, rank: int) -> None:
    """An empty one before the layer `up`, for a file's tensors to fill."""
    layer = model.get_submodule(up)
    assert isinstance(layer, nn.Linear)
    units = layer.out_features // (2 if model.config.gated else 1)
    model.set_submodule(up, PredictedRows(layer, Predictor(layer.in_features, units, rank)))
