"""The method `sparsify`: small activations become zeros, so that the columns of a matrix for them need no product.

    calibration ─inputs of each matrix─▶ magnitudes ─share─▶ threshold (or the k largest of each token)

A `predictor` foretells the zeros of ff.down's inputs, so that rows of ff.up are left out too. Zeros that a network has
of itself (ReLU) count towards the share: where there are enough, the threshold is 0 and the answers stay the same. With
scope = "global" matrices share the zeros out among themselves: those go first that cost
fewest nats per multiplication saved, from the squared error of outputs and a measured cost of each matrix alone.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.healing import Healing, heal
from lmforge.compress.importance import divergence
from lmforge.compress.measure import module_macs
from lmforge.compress.method import CalibrationBatch, Compressed, Context, Method, register
from lmforge.compress.predictor import PredictorSettings, add_predictors, predicted_rows, put_predictor
from lmforge.compress.smooth import watch_inputs
from lmforge.compress.sparse_input import SparseInput, skipped, sparse_inputs
from lmforge.errors import InputError
from lmforge.generate.lean import lean_of
from lmforge.kernels.build import path_taken
from lmforge.model.gpt import GPT
from lmforge.recipe import CompressStep

METHOD = "sparsify"
SAMPLED = 65_536  # magnitudes kept of each matrix and batch
GRID = tuple(step / 20 for step in range(20))  # shares that "global" chooses from
Part = Literal["attention.qkv", "attention.out", "ff.up", "ff.down"]


class SparsifyStep(CompressStep):
    """Zeros among the inputs of matrices."""

    method: Literal["sparsify"] = "sparsify"
    # threshold: entries below a magnitude; top_k: all but the largest of each token
    kind: Literal["threshold", "top_k"] = "threshold"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the inputs of the chosen matrices that are 0
    # layer: the same share in each matrix; global: shared out by nats for each multiplication
    scope: Literal["layer", "global"] = "layer"
    # whose inputs get zeros
    matrices: Annotated[tuple[Part, ...], Field(min_length=1)] = ("ff.down",)
    heal: Healing | None = None  # training with the zeros in place
    # what foretells the zeros of ff.down's inputs, so that rows of ff.up are skipped too
    predictor: PredictorSettings | None = None

    @model_validator(mode="after")
    def _what_a_predictor_foretells(self) -> SparsifyStep:
        if self.predictor is not None and ("ff.down" not in self.matrices or "ff.up" in self.matrices):
            raise ValueError(
                "predictor: it foretells the zeros of ff.down's inputs from ff.up's dense ones: put ff.down into "
                "matrices and leave ff.up out, or leave out predictor"
            )
        return self


def targets(model: GPT, parts: Sequence[str]) -> list[str]:
    """The matrices (or thin pairs) of these kinds whose inputs are not sparse yet."""
    ends = tuple(part.split(".")[1] for part in parts if part.startswith("ff."))
    names = []
    for name, _ in model.named_modules():
        pieces = name.split(".")
        attention = len(pieces) == 4 and ".".join(pieces[2:]) in parts and pieces[2] == "attention"
        feed = len(pieces) >= 4 and pieces[0] == "blocks" and pieces[2] == "ff" and pieces[-1] in ends
        if (attention or feed) and not isinstance(model.get_submodule(name), SparseInput):
            names.append(name)
    return names


class Magnitudes:
    """A sample of |x| of each matrix's inputs, sorted, and what zeros of a share cost its outputs."""

    def __init__(self, model: GPT, names: Sequence[str], calibration: Sequence[CalibrationBatch], seed: int) -> None:
        first = {_first(model, name): name for name in names}
        columns = {name: model.get_parameter(f"{inner}.weight").square().sum(0) for inner, name in first.items()}
        generator = torch.Generator().manual_seed(seed)
        sizes: dict[str, list[Tensor]] = {name: [] for name in names}
        costs: dict[str, list[Tensor]] = {name: [] for name in names}

        def see(inner: str, x: Tensor) -> None:
            if inner not in first or not len(x):
                return
            name, x = first[inner], x.float().abs()
            cost = (x.square() * columns[name]).flatten()
            flat = x.flatten()
            if len(flat) > SAMPLED:
                chosen = torch.randint(len(flat), (SAMPLED,), generator=generator)
                flat, cost = flat[chosen], cost[chosen]
            sizes[name].append(flat)
            costs[name].append(cost)

        watch_inputs(model, calibration, see)
        self.sorted: dict[str, Tensor] = {}
        self.costs: dict[str, Tensor] = {}
        for name, parts in sizes.items():
            if parts:
                self.sorted[name], order = torch.cat(parts).sort()
                self.costs[name] = torch.cat(costs[name])[order].cumsum(0)

    def threshold(self, name: str, share: float) -> float:
        """The magnitude up to which a `share` of the inputs lies; 0 where nothing was seen."""
        if name not in self.sorted:
            return 0.0
        place = round(share * len(self.sorted[name])) - 1
        return float(self.sorted[name][place]) if place >= 0 else 0.0

    def error(self, name: str, share: float) -> float:
        """The mean squared error of outputs, per input, that these zeros make, inputs taken as independent."""
        place = round(share * len(self.costs[name])) - 1
        return float(self.costs[name][place]) / len(self.costs[name]) if place >= 0 else 0.0


def _first(model: GPT, name: str) -> str:
    """The linear layer that a matrix's input meets first: the matrix, or the first of its pair."""
    return name if isinstance(model.get_submodule(name), nn.Linear) else f"{name}.0"


def wrap(model: GPT, name: str, threshold: float, count: int = 0) -> None:
    """Put the sparse form of a matrix in its place."""
    model.set_submodule(name, SparseInput(model.get_submodule(name), threshold, count))


def share_zeros(
    model: GPT, names: Sequence[str], magnitudes: Magnitudes, settings: SparsifyStep, context: Context
) -> tuple[dict[str, float], dict[str, float]]:
    """The share of zeros of each matrix, so that the mean over multiplications is `settings.share`, and what each costs
    alone at that share in nats."""
    batch, macs = context.calibration[:1], {name: module_macs(model.get_submodule(name)) for name in names}
    nats, weight = {}, {}
    for name in names:
        probe = copy.deepcopy(model)
        wrap(probe, name, magnitudes.threshold(name, settings.share))
        nats[name] = divergence(model, probe, batch)
        weight[name] = max(nats[name], 1e-12) / max(magnitudes.error(name, settings.share), 1e-30)
    places = dict.fromkeys(names, 0)
    wanted, reached = settings.share * sum(macs.values()), 0.0

    def price(name: str) -> float:
        now, following = GRID[places[name]], GRID[places[name] + 1]
        more = magnitudes.error(name, following) - magnitudes.error(name, now)
        return weight[name] * more / ((following - now) * macs[name])

    queue = [(price(name), name) for name in names]
    heapq.heapify(queue)
    while queue and reached < wanted:
        _, name = heapq.heappop(queue)
        reached += macs[name] * (GRID[places[name] + 1] - GRID[places[name]])
        places[name] += 1
        if places[name] + 1 < len(GRID):
            heapq.heappush(queue, (price(name), name))
    shares = {name: GRID[place] for name, place in places.items()}
    return shares, dict(sorted(nats.items(), key=lambda item: -item[1]))


class Sparsify(Method[SparsifyStep]):
    """`sparsify` as a step of the chain; a budget gives matrices back, whose inputs are then dense."""

    name = METHOD
    settings = SparsifyStep

    def apply(self, model: GPT, settings: SparsifyStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """The model with sparse inputs.

        Raises:
            InputError: the model holds integers, or every matrix of these kinds is sparse already.
        """
        refuse_frozen(model, "activations are sparsified", "put the step before it")
        result = copy.deepcopy(model).float().eval().requires_grad_(False)
        names = [name for name in targets(result, settings.matrices) if name not in kept]
        if not names:
            raise InputError("compress.steps: sparsify: no matrix of these kinds has dense inputs; name the step once")
        details: dict[str, Any] = {}
        with torch.no_grad():
            magnitudes = Magnitudes(result, names, context.calibration, context.seed)
            shares = dict.fromkeys(names, settings.share)
            if settings.scope == "global":
                reached = [name for name in names if name in magnitudes.sorted]
                chosen, details["nats_alone"] = share_zeros(result, reached, magnitudes, settings, context)
                shares |= chosen
            for name in names:
                self._wrap(result, name, shares[name], magnitudes, settings)
        if settings.heal is not None:
            result, details["training"] = heal(result, settings.heal, context)
        if settings.predictor is not None:
            downs = [name for name in names if ".ff." in name and name.endswith(".down")]
            found = add_predictors(result, downs, settings.predictor, context.calibration, context.seed)
            details["predictor"] = {"rank": settings.predictor.rank, "recall": settings.predictor.recall} | found
        return Compressed(result, _entry(result, kept), details | _report(result, context))

    def _wrap(self, model: GPT, name: str, share: float, magnitudes: Magnitudes, settings: SparsifyStep) -> None:
        width = model.get_parameter(f"{_first(model, name)}.weight").shape[1]
        count = max(1, round(width * (1 - share))) if settings.kind == "top_k" else 0
        wrap(model, name, 0.0 if count else magnitudes.threshold(name, share), count)

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """Wrap the matrices that the entry names.

        Raises:
            InputError: the entry names what is not there.
        """
        layers, known = entry.get("matrices"), dict(model.named_modules())
        if not isinstance(layers, dict) or not set(layers) <= set(known):
            raise InputError(
                "config.json: compression: matrices: not an entry this version reads; run the compress stage again"
            )
        for name, count in layers.items():
            wrap(model, name, 0.0, int(count))
        for name, rank in entry.get("predictors", {}).items():
            if name not in known or not isinstance(known[name], nn.Linear):
                raise InputError(
                    "config.json: compression: predictors: not an entry this version reads; run the compress stage "
                    "again"
                )
            put_predictor(model, name, int(rank))
        return model.requires_grad_(False)

    def inputs(self, settings: SparsifyStep) -> Sequence[Path]:
        """The teachers of the healing."""
        return settings.heal.teachers if settings.heal else ()

    def units(self, model: GPT, settings: SparsifyStep) -> Sequence[str]:
        """As `targets`."""
        return targets(model, settings.matrices)

    def give_back(
        self, before: GPT, result: Compressed, units: Collection[str], settings: SparsifyStep, context: Context
    ) -> Compressed:
        """Matrices as they were, their inputs dense."""
        model = copy.deepcopy(result.model)
        for name in units:
            model.set_submodule(name, copy.deepcopy(before.get_submodule(name)))
            up = f"{name.removesuffix('down')}up"
            if up in predicted_rows(model):
                model.set_submodule(up, model.get_submodule(f"{up}.inner"))
        return Compressed(model, _entry(model, units), {**result.details, **_report(model, context)})


def _entry(model: GPT, kept: Collection[str]) -> dict[str, Any]:
    matrices = {name: module.count for name, module in sparse_inputs(model).items()}
    entry = {"method": METHOD, "matrices": matrices, "kept": sorted(kept)}
    ranks = {name: len(module.predictor.narrow) for name, module in predicted_rows(model).items()}
    return entry | {"predictors": ranks} if ranks else entry


def _report(model: GPT, context: Context) -> dict[str, Any]:
    report: dict[str, Any] = {
        "thresholds": {name: float(module.threshold) for name, module in sparse_inputs(model).items()},
        "skipped": skipped(model, context.calibration),
    }
    if lean_of(model) is None:
        report["note"] = f"no gain in speed on this machine: nothing skips columns ({path_taken()}); products are dense"
    return report


register(Sparsify())
