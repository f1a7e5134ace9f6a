"""The method `factorize`: a matrix becomes two thin ones, those that change its outputs on calibration text least.

    G = Σ x xᵀ over calibration inputs = S Sᵀ;  W S = U Σ Vᵀ;  W ≈ (U_r √Σ_r) (√Σ_r V_rᵀ S⁻¹)

The squared error of the outputs is then Σ_{i>r} σ_i² exactly, and no other pair of rank r has less (Wang et al. 2024,
"SVD-LLM", theorem 1; Yuan et al. 2023, "ASVD", of the same aim). Ranks are shared out among the matrices: each next
rank goes where it saves most nats per number stored, the nats of an error being measured with each matrix cut alone.
"""

from __future__ import annotations

import copy
import dataclasses
import heapq
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lmforge.compress.calibration import input_grams
from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.healing import Healing, heal
from lmforge.compress.importance import divergence, networks
from lmforge.compress.masks import masked, restore_masks
from lmforge.compress.method import Compressed, Context, Method, register
from lmforge.compress.reshape import rebuilt
from lmforge.compress.sparse_input import refuse_sparse
from lmforge.errors import InputError
from lmforge.model.experts import Experts
from lmforge.model.gpt import GPT, LayerShape
from lmforge.recipe import CompressStep

METHOD = "factorize"
DAMPING = 1e-6  # of the mean of a Gram matrix's diagonal, added to it: inputs that never differ leave it singular
Part = Literal["attention.qkv", "attention.out", "ff.up", "ff.down"]
PARTS: tuple[Part, ...] = ("attention.qkv", "attention.out", "ff.up", "ff.down")


class FactorizeStep(CompressStep):
    """Matrices as products of two thin ones."""

    method: Literal["factorize"] = "factorize"
    ratio: Annotated[float, Field(ge=1)] = 2.0  # numbers of the chosen matrices before, to those after
    # that become thin pairs
    matrices: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    # the training after the cut; none: no training
    heal: Healing | None = None


@dataclasses.dataclass(frozen=True)
class Factors:
    """The matrices of one place in one layer, which have one rank: one, or those of all experts. `left` U √Σ (O,K),
    `right` √Σ Vᵀ S⁻¹ (K,I) and `energy` σ² (K,) of each."""

    names: tuple[str, ...]
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    energy: tuple[Tensor, ...]

    @property
    def cost(self) -> int:
        """Numbers that one more rank takes."""
        return sum(left.shape[0] + right.shape[1] for left, right in zip(self.left, self.right, strict=True))

    @property
    def dense(self) -> int:
        """Numbers of the matrices as they are."""
        return sum(left.shape[0] * right.shape[1] for left, right in zip(self.left, self.right, strict=True))

    @property
    def most(self) -> int:
        """The full rank."""
        return len(self.energy[0])

    def error(self, rank: int) -> float:
        """Σ of squares that the outputs miss with a rank."""
        return sum(float(energy[rank:].sum()) for energy in self.energy)

    def thin(self, rank: int) -> dict[str, Tensor]:
        """The tensors of the pairs by name."""
        pairs = zip(self.names, self.left, self.right, strict=True)
        return {
            f"{name}.{place}.weight": tensor.contiguous()
            for name, left, right in pairs
            for place, tensor in ((0, right[:rank]), (1, left[:, :rank]))
        }


def factors(weight: Tensor, gram: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """weight (O,I), Gram matrix of its inputs (I,I; None: none was seen) → U √Σ (O,K), √Σ Vᵀ S⁻¹ (K,I), σ² (K,), of
    which the first r columns, rows and numbers belong to rank r."""
    exact = weight.double()
    width = exact.shape[1]
    whitening = torch.eye(width, dtype=torch.float64)
    if gram is not None and float(gram.diagonal().mean()) > 0:
        damped = gram.double() + DAMPING * gram.diagonal().double().mean() * torch.eye(width, dtype=torch.float64)
        whitening = torch.linalg.cholesky(damped)
    u, sigma, vt = torch.linalg.svd(exact @ whitening, full_matrices=False)
    root = sigma.sqrt()
    right = torch.linalg.solve_triangular(whitening.t(), (root[:, None] * vt).t(), upper=True).t()
    # S is lower: V^T S^-1 = (S^-T V)^T
    return (u * root).float(), right.float(), sigma.square().float()


def places(model: GPT, parts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The places whose matrices are still whole: {"blocks.3.ff.up": names of its matrices}."""
    result: dict[str, tuple[str, ...]] = {}
    for layer in range(model.config.layers):
        for part in parts:
            kind = part.split(".")[1]
            if part.startswith("ff"):
                names = [f"{network}.{kind}" for network in networks(model, layer)]
                ff = model.blocks[layer].ff
                if isinstance(ff, Experts) and ff.shared is not None:
                    names.append(f"blocks.{layer}.ff.shared.{kind}")
            else:
                names = [f"blocks.{layer}.{part}"] if model.blocks[layer].attention is not None else []
            if names and all(isinstance(model.get_submodule(name), nn.Linear) for name in names):
                result[f"blocks.{layer}.{part}"] = tuple(names)
    return result


def share_ranks(made: Mapping[str, Factors], weights: Mapping[str, float], numbers: float) -> dict[str, int]:
    """Ranks of all places that take at most `numbers` together, each at least 1; `weights`: nats of a unit of squared
    error. A rank whose pair takes as many numbers as the matrix becomes 0: the matrix stays."""
    ranks = dict.fromkeys(made, 1)
    left = numbers - sum(each.cost for each in made.values())

    def gain(name: str) -> float:
        each = made[name]
        return weights[name] * sum(float(energy[ranks[name]]) for energy in each.energy) / each.cost

    queue = [(-gain(name), name) for name, each in made.items() if each.most > 1]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        each = made[name]
        step = min(each.cost, each.dense - ranks[name] * each.cost)  # the last rank before the matrix itself is smaller
        if step > left:
            continue
        left -= max(0, step)
        ranks[name] += 1
        if ranks[name] * each.cost >= each.dense or ranks[name] >= each.most:
            ranks[name] = 0 if ranks[name] * each.cost >= each.dense else ranks[name]
        else:
            heapq.heappush(queue, (-gain(name), name))
    return ranks


def with_ranks(model: GPT, made: Mapping[str, Factors], ranks: Mapping[str, int]) -> GPT:
    """The model with pairs of these ranks; a rank of 0 leaves the matrices as they are."""
    shapes: dict[int, LayerShape] = {}
    tensors: dict[str, Tensor] = {}
    gone: set[str] = set()
    for place, rank in ranks.items():
        if not rank:
            continue
        _, number, part = place.split(".", 2)
        layer = int(number)
        shape = shapes.get(layer, model.config.shape_of(layer))
        shapes[layer] = dataclasses.replace(shape, **{f"{part.split('.')[1]}_rank": rank})
        tensors |= made[place].thin(rank)
        for name in made[place].names:
            gone.add(name)
            bias = getattr(model.get_submodule(name), "bias", None)
            if bias is not None:
                tensors[f"{name}.1.bias"] = bias.detach()
    masks = {name: pattern for name, pattern in masked(model).items() if name not in gone}
    return rebuilt(model, shapes, tensors, masks)


class Factorize(Method[FactorizeStep]):
    """`factorize` as a step of the chain; a budget gives places back: "blocks.3.ff.up" is whole again."""

    name = METHOD
    settings = FactorizeStep

    def apply(self, model: GPT, settings: FactorizeStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """The model with thin pairs.

        Raises:
            InputError: no matrix is left to factorize, or the ratio leaves less than rank 1 everywhere.
        """
        refuse_frozen(model, "matrices are factorized", "put the step before it")
        refuse_sparse(model, "matrices are factorized")
        base = copy.deepcopy(model).float().eval().requires_grad_(False)
        names = {place: each for place, each in places(base, settings.matrices).items() if place not in kept}
        if not names:
            raise InputError(
                "compress.steps: factorize: every matrix of it is two thin ones already; name the step once"
            )
        grams = input_grams(base, context.calibration)
        made = {place: _factors_of(base, each, grams) for place, each in names.items()}
        dense = sum(each.dense for each in made.values())
        numbers = dense / settings.ratio
        least = sum(each.cost for each in made.values())
        if numbers < least:
            raise InputError(
                f"compress.steps: factorize: ratio: {settings.ratio:g} leaves less than rank 1; at most "
                f"{dense / least:.3g} is possible here"
            )
        weights, ranking = _nats_of_errors(base, made, settings.ratio, context)
        ranks = share_ranks(made, weights, numbers)
        result = with_ranks(base, made, ranks)
        taken = sum(each.cost * ranks[place] if ranks[place] else each.dense for place, each in made.items())
        details: dict[str, Any] = {
            "ranks": ranks,
            "full_ranks": {place: each.most for place, each in made.items()},
            "ratio": dense / taken,
            "nats_alone": ranking,
        }
        if settings.heal is not None:
            result, details["training"] = heal(result, settings.heal, context)
        entry = {"method": METHOD, "kept": sorted(kept), "masked": masked(result)}
        return Compressed(result, entry, details, fresh=True)

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """As `restore_masks`; ranks are in the config."""
        return restore_masks(model, entry, tensors)

    def inputs(self, settings: FactorizeStep) -> Sequence[Path]:
        """The teachers of the healing."""
        return settings.heal.teachers if settings.heal else ()

    def units(self, model: GPT, settings: FactorizeStep) -> Sequence[str]:
        """As `places`."""
        return list(places(model, settings.matrices))

    def give_back(
        self, before: GPT, result: Compressed, units: Collection[str], settings: FactorizeStep, context: Context
    ) -> Compressed:
        """Matrices put back as they were, the others as `result` has them."""
        shapes: dict[int, LayerShape] = {}
        names: list[str] = []
        for place, each in places(before, settings.matrices).items():
            if place in units:
                _, number, part = place.split(".", 2)
                layer = int(number)
                shape = shapes.get(layer, result.model.config.shape_of(layer))
                shapes[layer] = dataclasses.replace(shape, **{f"{part.split('.')[1]}_rank": 0})
                names += each
        old = {
            name: parameter.detach()
            for name, parameter in before.named_parameters(remove_duplicate=False)
            if name.rpartition(".")[0] in names
        }
        masks = masked(result.model) | {name: kind for name, kind in masked(before).items() if name in names}
        model = rebuilt(result.model, shapes, old, masks)
        ranks = {place: 0 if place in units else rank for place, rank in result.details["ranks"].items()}
        entry = {**result.entry, "kept": sorted(units), "masked": masked(model)}
        return Compressed(model, entry, {**result.details, "ranks": ranks}, fresh=True)


def _factors_of(model: GPT, names: Sequence[str], grams: Mapping[str, Tensor]) -> Factors:
    each = [factors(model.get_parameter(f"{name}.weight").detach(), grams.get(name)) for name in names]
    left, right, energy = zip(*each, strict=True)
    return Factors(tuple(names), left, right, energy)


def _nats_of_errors(
    model: GPT, made: Mapping[str, Factors], ratio: float, context: Context
) -> tuple[dict[str, float], dict[str, float]]:
    """What a unit of squared error of each place's outputs costs in nats, by cutting it alone to the common ratio; and
    those nats, the dearest first. Never 0, so that no place is left with nothing."""
    batch = context.calibration[:1]
    weights, cost = {}, {}
    for place, each in made.items():
        rank = max(1, min(each.most - 1, int(each.dense / ratio / each.cost)))
        cost[place] = divergence(model, with_ranks(model, made, {place: rank}), batch)
        weights[place] = max(cost[place], 1e-9) / max(each.error(rank), 1e-30)
    return weights, dict(sorted(cost.items(), key=lambda item: -item[1]))


register(Factorize())
