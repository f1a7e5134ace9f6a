"""Which whole parts of a network go: layers, experts, heads, feed-forward units, the least important first."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lmforge.compress.importance import expert_scores, group_scores, mean_nats, measured, unit_scores
from lmforge.compress.method import CalibrationBatch, Context
from lmforge.compress.sparse_input import refuse_sparse
from lmforge.compress.structure import KeptLayer, cut, whole_layer
from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig


class Shares(Protocol):
    """The shares of each kind of part that go in the end, and whether of each layer or of all together."""

    @property
    def heads(self) -> float: ...
    @property
    def units(self) -> float: ...
    @property
    def experts(self) -> float: ...
    @property
    def layers(self) -> float: ...
    @property
    def scope(self) -> str: ...


def cut_least(
    model: GPT, whole: GPTConfig, shares: Shares, progress: float, context: Context, kept: Collection[str] = ()
) -> tuple[GPT, dict[str, Any]]:
    """A network of what counts most in `model`, which earlier rounds may have cut out of one of shape `whole`.

    `progress`: the share of rounds that this one ends; what is gone follows the cubic schedule. Layers "blocks.N" of
    `kept` stay whole. The figures have how many of each kind are left.

    Raises:
        InputError: fewer experts would be left than are active.
    """
    refuse_sparse(model, "a network can be cut")
    ramp = 1 - (1 - progress) ** 3
    layers, costs = _without_layers(model, context.calibration, _left(whole.layers, shares.layers * ramp))
    scores = measured(model, context.calibration)
    config = model.config
    chosen = [layer.layer for layer in layers]
    free = [layer for layer in chosen if f"blocks.{layer}" not in kept]
    experts = {layer: expert_scores(model, layer, scores) for layer in free if config.shape_of(layer).experts}
    groups = {layer: group_scores(model, layer, scores) for layer in free if config.shape_of(layer).heads}
    units = {layer: unit_scores(model, layer, scores) for layer in free if config.shape_of(layer).d_ff}
    scale = len(chosen) / config.layers
    totals = _totals(whole, len(free) / config.layers if kept else scale)
    left_experts = _best(experts, totals["experts"], shares.experts * ramp, shares.scope, config.experts_active)
    left_groups = _best(groups, totals["groups"], shares.heads * ramp, shares.scope, 1)
    left_units = _best_units(units, left_experts, shares.units * ramp, shares.scope, whole)
    result = []
    for layer in layers:
        place = layer.layer
        if place in left_groups:
            layer = dataclasses.replace(layer, groups=left_groups[place])
        if place in left_experts:
            layer = dataclasses.replace(layer, experts=left_experts[place])
        if place in left_units:
            layer = dataclasses.replace(layer, units=left_units[place])
        result.append(layer)
    smaller = cut(model, result)
    shapes = [smaller.config.shape_of(layer) for layer in range(smaller.config.layers)]
    about: dict[str, Any] = {
        "layers": len(shapes),
        "heads": [shape.heads for shape in shapes],
        "d_ff": [shape.d_ff for shape in shapes],
    }
    if costs:
        about["nats_without_layer"] = costs
    if smaller.config.has_experts:
        about["experts"] = [shape.experts for shape in shapes]
    return smaller, about


def _left(count: int, share: float) -> int:
    return max(1, count - round(count * share))


def _without_layers(
    model: GPT, calibration: Sequence[CalibrationBatch], count: int
) -> tuple[list[KeptLayer], list[float]]:
    """The `count` layers that stay when again and again the layer goes whose absence costs least, measured; and what
    the absence of each cost alone."""
    layers = [whole_layer(model.config, layer) for layer in range(model.config.layers)]
    alone: list[float] = []
    base = mean_nats(model, calibration) if len(layers) > count else 0.0
    while len(layers) > count:
        costs = [
            mean_nats(cut(model, [*layers[:place], *layers[place + 1 :]]), calibration) - base
            for place in range(len(layers))
        ]
        alone = alone or costs
        del layers[min(range(len(costs)), key=costs.__getitem__)]
    return layers, alone


def _totals(whole: GPTConfig, scale: float) -> dict[str, int]:
    """Parts of the layers that are there, in the network before the first round."""
    shapes = [whole.shape_of(layer) for layer in range(whole.layers)]
    return {
        "experts": round(scale * sum(shape.experts for shape in shapes if shape.d_ff)),
        "groups": round(scale * sum(shape.kv_heads for shape in shapes if shape.heads)),
    }


def _best(scores: dict[int, Tensor], total: int, share: float, scope: str, least: int) -> dict[int, tuple[int, ...]]:
    """The parts of each layer that stay: so many that of `total` a `share` is gone, no fewer than `least` in a layer.

    Raises:
        InputError: there are fewer than `least`.
    """
    if not scores or not share:
        return {}
    if any(len(each) < least for each in scores.values()):
        raise InputError(f"compress.steps: prune: fewer than the {least} parts that have to stay in a layer are there")
    if scope == "layer":
        each_total = total / len(scores)
        counts = {layer: max(least, min(len(each), round(each_total * (1 - share)))) for layer, each in scores.items()}
    else:
        counts = dict.fromkeys(scores, least)
        want = max(sum(counts.values()), total - round(total * share))
        rest = [
            (float(score), layer) for layer, each in scores.items() for score in each.sort(descending=True)[0][least:]
        ]
        for _, layer in sorted(rest, reverse=True)[: want - sum(counts.values())]:
            counts[layer] += 1
    return {layer: tuple(each.topk(counts[layer]).indices.sort().values.tolist()) for layer, each in scores.items()}


def _best_units(
    scores: dict[int, list[Tensor]],
    experts: dict[int, tuple[int, ...]],
    share: float,
    scope: str,
    whole: GPTConfig,
) -> dict[int, tuple[tuple[int, ...], ...]]:
    """The units of each network of each layer that stay, equally many in the experts of a layer."""
    networks = {
        layer: [each for number, each in enumerate(lists) if layer not in experts or number in experts[layer]]
        for layer, lists in scores.items()
    }
    if not share:
        return {layer: tuple(tuple(range(len(each))) for each in lists) for layer, lists in networks.items()}
    shapes = [whole.shape_of(layer) for layer in range(whole.layers)]
    wide = max(shape.d_ff // max(1, shape.experts) for shape in shapes)
    if scope == "layer":
        counts = {layer: max(1, min(len(lists[0]), round(wide * (1 - share)))) for layer, lists in networks.items()}
    else:
        ranked = {
            layer: torch.stack([each.sort(descending=True)[0] for each in lists]).sum(0)
            for layer, lists in networks.items()
        }
        best = _best(ranked, wide * len(ranked), share, "global", 1)
        counts = {layer: len(each) for layer, each in best.items()}
    return {
        layer: tuple(tuple(each.topk(counts[layer]).indices.sort().values.tolist()) for each in lists)
        for layer, lists in networks.items()
    }
