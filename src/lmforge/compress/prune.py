"""The method `prune`: weights that count least become zeros that stay, or whole heads, units, experts and layers go.

    model ─round: importance, the least go─▶ ─healing─▶ ─next round: more go─▶ … ─▶ share reached

Rounds follow the cubic schedule s_t = s·(1 − (1 − t/n)³) (Zhu and Gupta 2017, "To prune, or not to prune", eq. 1).
After each the learning rate begins anew (Renda et al. 2020, learning-rate rewinding); with rewind = "weights" the
weights that are left go back to what they were before the first round as well (Frankle et al. 2020, without a rewinding
point inside the teacher's own training, which the chain does not have).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from lmforge.compress.frozen import refuse_frozen
from lmforge.compress.healing import Healing, heal
from lmforge.compress.importance import Measured, measured, weight_scores
from lmforge.compress.masks import (
    MaskedLinear,
    magnitude_mask,
    mask_linear,
    masked,
    restore_masks,
    two_of_four_mask,
)
from lmforge.compress.method import Compressed, Context, Method, register
from lmforge.compress.reshape import put_back_layers
from lmforge.compress.structured import cut_least
from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.recipe import CompressStep
from lmforge.recipe.types import Positive, Share

METHOD = "prune"


class PruneStep(CompressStep):
    """Weights, or whole parts, taken out of a model."""

    method: Literal["prune"] = "prune"
    # zeros anywhere; two zeros in each four along a row; whole heads, units, experts, layers
    kind: Literal["unstructured", "2:4", "structured"] = "unstructured"
    share: Share | None = None  # of the weights of the layers that become zero; unstructured, default 0.5
    scope: Literal["layer", "global"] = "layer"  # the share of each layer, or of all together
    # default: magnitude for weights, taylor for parts
    importance: Literal["magnitude", "activation", "taylor"] | None = None
    heads: Share = 0.0  # structured: the share of heads that goes (groups that share keys and values go together), …
    units: Share = 0.0  # … of feed-forward units, …
    experts: Share = 0.0  # … of experts, …
    layers: Share = 0.0  # … of layers
    # cuts, each further than the one before, with the healing after each
    rounds: Positive = 1
    # what begins anew after a cut: the learning rate alone, or the weights that are left too
    rewind: Literal["rate", "weights"] = "rate"
    heal: Healing | None = None  # the training after each round; none: no training

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> PruneStep:
        parts = (self.heads, self.units, self.experts, self.layers)
        if self.kind == "structured":
            if self.share is not None or not any(parts):
                raise ValueError("kind 'structured' takes heads, units, experts and layers (at least one), not share")
            if self.rewind == "weights":
                raise ValueError("rewind = 'weights' needs matrices that keep their shape; use rewind = 'rate'")
            if self.importance not in (None, "taylor"):
                raise ValueError("kind 'structured' measures parts by importance = 'taylor'")
        elif any(parts):
            raise ValueError("heads, units, experts and layers are of kind = 'structured'")
        if self.kind == "2:4" and (self.share not in (None, 0.5) or self.scope == "global"):
            raise ValueError("kind '2:4' takes half of the weights of each four: leave out share and scope")
        if 1.0 in (self.share, self.heads, self.experts, self.layers):
            raise ValueError("a share of 1 leaves nothing")
        return self


def cubic(share: float, step: int, rounds: int) -> float:
    """The share that is gone after round `step`, which is counted from 1."""
    return share * (1 - (1 - step / rounds) ** 3)


def layer_names(model: GPT) -> list[str]:
    """The matrices that are pruned: the linear layers of the blocks but routers, which are small and steer much."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in names if name.startswith("blocks.") and not name.endswith("router")]


def sparsify_weights(
    model: GPT, names: Sequence[str], settings: PruneStep, share: float, scores: Measured | None
) -> None:
    """Mask the least weights of the layers `names` of `model`, in place. Weights that are gone already stay so.

    Raises:
        InputError: rows whose length is no multiple of four, for 2:4.
    """
    kind = settings.importance or "magnitude"
    each: dict[str, Tensor] = {}
    for name in names:
        module = model.get_submodule(name)
        score = weight_scores(model, name, kind, scores).cpu().float()
        if isinstance(module, MaskedLinear):
            score = score.masked_fill(~module.mask.cpu(), -1.0)
        each[name] = score
    if settings.kind == "2:4":
        uneven = [name for name in names if each[name].shape[1] % 4]
        if uneven:
            raise InputError(
                f"compress.steps: prune: 2:4: the rows of {uneven[0]} are no multiple of 4 long; use another kind"
            )
        masks = {name: two_of_four_mask(score) for name, score in each.items()}
    elif settings.scope == "global":
        flat = magnitude_mask(torch.cat([score.flatten() for score in each.values()]), share)
        pieces = flat.split([score.numel() for score in each.values()])
        masks = {name: mask.view(score.shape) for (name, score), mask in zip(each.items(), pieces, strict=True)}
    else:
        masks = {name: magnitude_mask(score, share) for name, score in each.items()}
    for name, mask in masks.items():
        module = model.get_submodule(name)
        if isinstance(module, MaskedLinear):
            module.set_mask(mask & module.mask.cpu())
        else:
            mask_linear(model, name, mask, settings.kind)


class Prune(Method[PruneStep]):
    """`prune` as a step of the chain; a budget gives back layers: matrices, or with whole parts "blocks.N"."""

    name = METHOD
    settings = PruneStep

    def apply(self, model: GPT, settings: PruneStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """The pruned model.

        Raises:
            InputError: the model holds integers, or nothing that the settings ask for is left.
        """
        refuse_frozen(model, "a model is pruned", "put the step before it")
        result = copy.deepcopy(model).float().eval().requires_grad_(False)
        original = result.state_dict() if settings.rewind == "weights" else {}
        original = {name: tensor.clone() for name, tensor in original.items()}
        rounds = []
        for number in range(1, settings.rounds + 1):
            if settings.kind == "structured":
                result, about = cut_least(result, model.config, settings, number / settings.rounds, context, kept)
            else:
                about = self._mask(result, settings, number, context, kept)
            if original:
                _rewind(result, original)
            if settings.heal is not None:
                result, about["training"] = heal(result, settings.heal, context, f"round-{number}-")
            rounds.append(about)
        entry = {"method": METHOD, "kind": settings.kind, "kept": sorted(kept), "masked": masked(result)}
        details = {"rounds": rounds, "sparsity": sparsity(result), "note": _note(result, settings)}
        return Compressed(result, entry, details, fresh=settings.kind == "structured")

    def _mask(
        self, result: GPT, settings: PruneStep, number: int, context: Context, kept: Collection[str]
    ) -> dict[str, Any]:
        names = [name for name in layer_names(result) if name not in kept]
        share = 0.5 if settings.share is None else settings.share
        gone = cubic(share, number, settings.rounds)
        kind = settings.importance or "magnitude"
        scores = None if kind == "magnitude" else measured(result, context.calibration, squares=kind == "taylor")
        sparsify_weights(result, names, settings, gone, scores)
        return {"share": 0.5 if settings.kind == "2:4" else gone}

    def inputs(self, settings: PruneStep) -> Sequence[Path]:
        """The teachers of the healing."""
        return settings.heal.teachers if settings.heal else ()

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """As `restore_masks`; the shapes of what is left are in the config."""
        return restore_masks(model, entry, tensors)

    def units(self, model: GPT, settings: PruneStep) -> Sequence[str]:
        """Matrices by name; with whole parts the layers."""
        if settings.kind == "structured":
            return [] if settings.layers else [f"blocks.{layer}" for layer in range(model.config.layers)]
        return layer_names(model)

    def give_back(
        self, before: GPT, result: Compressed, units: Collection[str], settings: PruneStep, context: Context
    ) -> Compressed:
        """Without training the method is applied anew, with training its layers are put back as they were."""
        if settings.heal is None:
            return self.apply(before, settings, context, units)
        if settings.kind == "structured":
            model = put_back_layers(result.model, before, [int(name.split(".")[1]) for name in units])
        else:
            model = copy.deepcopy(result.model)
            for name in units:
                model.set_submodule(name, copy.deepcopy(before.get_submodule(name)))
        entry = {**result.entry, "kept": sorted(units), "masked": masked(model)}
        return Compressed(model, entry, {**result.details, "sparsity": sparsity(model)}, result.fresh)


@torch.no_grad()
def _rewind(model: GPT, original: Mapping[str, Tensor]) -> None:
    """Give the weights that are left the values that they had in `original`, the state of the model before."""
    for name, module in model.named_modules():
        if isinstance(module, MaskedLinear) and f"{name}.weight" in original:
            module.weight.copy_(original[f"{name}.weight"])
            module.clear()
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if name in original and not isinstance(model.get_submodule(owner), MaskedLinear):
            parameter.copy_(original[name])


def sparsity(model: GPT) -> dict[str, float]:
    """The share of zeros in each masked layer, and in all matrices of the blocks."""
    shares, zeros, total = {}, 0, 0
    for name in layer_names(model):
        module = model.get_submodule(name)
        weight = model.get_parameter(f"{name}.weight")
        gone = int((~module.mask).sum()) if isinstance(module, MaskedLinear) else 0
        if isinstance(module, MaskedLinear):
            shares[name] = gone / weight.numel()
        zeros, total = zeros + gone, total + weight.numel()
    return shares | {"blocks": zeros / max(1, total)}


def _note(model: GPT, settings: PruneStep) -> str:
    if settings.kind == "structured":
        return "the parts are gone: fewer multiplications, in dense matrices"
    layers = [module for module in model.modules() if isinstance(module, MaskedLinear)]
    skipping = sum((packed := module.kernel_matrix()) is not None and packed.whole is not packed for module in layers)
    kept = "the file has the weights left and a bit a place"
    if skipping:
        return (
            f"decoding does not read the zeros of {skipping} of {len(layers)} matrices, measured to be faster; {kept}"
        )
    return f"no gain in speed on this machine: leaving zeros out was measured to take no less time; {kept}"


register(Prune())
