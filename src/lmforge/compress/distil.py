"""The method `distil`: a student learns a teacher's distribution over every next token.

    model ─cut: every k-th layer, the chosen widths─▶ student ─healing: towards the teacher─▶ distilled model

Without widths of its own the student is the model as the step before left it: healing alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmforge.compress.healing import Healing, heal
from lmforge.compress.importance import channel_scores, group_scores, measured, unit_scores
from lmforge.compress.masks import masked, restore_masks
from lmforge.compress.method import Compressed, Context, Method, register
from lmforge.compress.sparse_input import refuse_sparse
from lmforge.compress.structure import KeptLayer, cut, whole_layer
from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import CompressStep
from lmforge.recipe.types import Positive

METHOD = "distil"


class DistilStep(CompressStep, Healing):
    """A student trained towards a teacher; widths that are not given stay."""

    method: Literal["distil"] = "distil"
    # updates of the weights
    steps: Positive = 1000
    layers: Positive | None = None  # spread evenly over those of the model, the first and the last among them
    d_model: Positive | None = None  # the most important channels of the residual stream
    kv_heads: Positive | None = None  # of a layer; queries in proportion
    d_ff: Positive | None = None  # of a layer, all its experts together
    # own: the student begins with the model's weights; fresh: at random
    begin: Literal["own", "fresh"] = "own"


def spread(layers: int, of: int) -> list[int]:
    """`layers` numbers of `of` layers, evenly apart, the first and last among them (Sanh et al. 2019, "DistilBERT",
    section 2: every second layer)."""
    if layers == 1:
        return [0]
    return [round(place * (of - 1) / (layers - 1)) for place in range(layers)]


def student_of(model: GPT, settings: DistilStep, context: Context) -> GPT:
    """The student before its training: a cut of the model, the most important channels, heads and units of it; or, with
    begin = "fresh", a network of that shape with random weights.

    Raises:
        InputError: a width is larger than the model's.
    """
    config = model.config
    _check_widths(config, settings)
    refuse_sparse(model, "a network can be cut")
    scores = measured(model, context.calibration)
    layers = [
        _kept(config, layer, settings, group_scores(model, layer, scores), unit_scores(model, layer, scores))
        for layer in spread(settings.layers or config.layers, config.layers)
    ]
    channels = None
    if settings.d_model and settings.d_model < config.d_model:
        channels = channel_scores(model, scores).topk(settings.d_model).indices.sort().values.tolist()
    student = cut(model, layers, channels)
    if settings.begin == "fresh":
        student = GPT(student.config)
        student.initialise(context.seed)
    return student


def _check_widths(config: GPTConfig, settings: DistilStep) -> None:
    most = {
        "layers": config.layers,
        "d_model": config.d_model,
        "kv_heads": max(config.shape_of(layer).kv_heads for layer in range(config.layers)),
        "d_ff": max(config.shape_of(layer).d_ff for layer in range(config.layers)),
    }
    for name, limit in most.items():
        value = getattr(settings, name)
        if value is not None and value > limit:
            raise InputError(
                f"compress.steps: distil: {name}: {value} is more than the model's {limit}; give at most it"
            )


def _kept(config: GPTConfig, layer: int, settings: DistilStep, groups: Tensor, units: list[Tensor]) -> KeptLayer:
    """The best heads and units of a layer."""
    kept = whole_layer(config, layer)
    if settings.kv_heads and settings.kv_heads < len(kept.groups):
        best = groups.topk(settings.kv_heads).indices.sort().values.tolist()
        kept = dataclasses.replace(kept, groups=tuple(best))
    width = (settings.d_ff or 10**12) // max(1, len(kept.experts))
    if 0 < width < len(kept.units[0]):
        rows = tuple(tuple(each.topk(width).indices.sort().values.tolist()) for each in units)
        kept = dataclasses.replace(kept, units=rows)
    return kept


class Distil(Method[DistilStep]):
    """`distil` as a step of the chain. A budget can give nothing back: every weight has learned with the others."""

    name = METHOD
    settings = DistilStep

    def apply(self, model: GPT, settings: DistilStep, context: Context, kept: Collection[str] = ()) -> Compressed:
        """A trained student.

        Raises:
            InputError: a width is larger than the model's, the model holds integers, or a teacher has another
                vocabulary.
        """
        widths = {name: getattr(settings, name) for name in ("layers", "d_model", "kv_heads", "d_ff")}
        made = any(widths.values()) or settings.begin == "fresh"
        torch.manual_seed(context.seed)
        student = student_of(model, settings, context) if made else model
        student, details = heal(student, settings, context)
        entry = {"method": METHOD, "steps": details["steps"], "masked": masked(student)}
        return Compressed(student, entry, {"training": details, "student": student.config.to_json()}, fresh=made)

    def inputs(self, settings: DistilStep) -> Sequence[Path]:
        """The teachers."""
        return settings.teachers

    def restore(self, model: GPT, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT:
        """As `restore_masks`; all else is in the config."""
        return restore_masks(model, entry, tensors)


register(Distil())
