"""Bytes on a device of a cluster, by component and stage of the pipeline: mixed precision, AdamW.

Weights and gradients in 16 bits, AdamW's moments and its own copy of the weights in 32 (12 bytes a parameter;
Rajbhandari et al. 2020, section 3.1); activations of the micro-batches that are under way (Korthikanti et al. 2022,
section 4).
"""

from __future__ import annotations

import functools

from lmforge.model.loss import loss_chunk
from lmforge.plan.pipelines import split_layers
from lmforge.plan.step_time import ClusterLayout, DecoderShape


def memory_of(shape: DecoderShape, at: ClusterLayout) -> dict[str, float]:
    """Of the fullest device: on the first stage, where most micro-batches are under way, or on the last, which has the
    output matrix."""
    return max((memory_of_stage(shape, at, stage) for stage in {0, at.pipeline - 1}), key=lambda it: sum(it.values()))


def memory_of_stage(shape: DecoderShape, at: ClusterLayout, stage: int) -> dict[str, float]:
    """Of the devices of one stage of the pipeline."""
    first, last = stage == 0, stage == at.pipeline - 1
    layers = layers_of_stage(shape, at, stage)
    experts = shape.ff_parameters(False) - shape.ff_parameters(True) if shape.experts else 0.0
    one = shape.attention_parameters() + shape.ff_parameters(False) - experts * (1 - 1 / at.expert)
    table = shape.width * shape.vocabulary
    tables = table * (first + (last and not (shape.tied and first)))
    held = (layers * one + tables) / at.tensor
    tokens = at.micro * at.sequence / at.context
    split = at.tensor if at.sequence_parallel else 1
    under_way = _under_way(at, stage)
    again = 2 * tokens * shape.width * 8 / split if at.recompute == "full" else 0.0
    return {
        "weights": 2 * held / (at.shard if at.reshard else 1),
        "gradients": 2 * held / (at.shard if at.pipeline == 1 else 1),  # stages sum them when all passes are through
        "optimizer": 12 * held / at.shard,
        "activations": kept_of_layer(shape, at, tokens) * layers * under_way + again,
        "logits": 6 * min(tokens, loss_chunk(shape.width)) * shape.vocabulary / at.tensor * last,
        "gathered": 2 * 2 * max(one, table if last else 0) / at.tensor if at.shard > 1 and at.reshard else 0.0,
    }


def layers_of_stage(shape: DecoderShape, at: ClusterLayout, stage: int) -> int:
    """Layers on the devices of a stage, over all of its parts."""
    return _layers_of_stages(shape, at.pipeline, at.interleave)[stage]


@functools.cache
def _layers_of_stages(shape: DecoderShape, stages: int, parts: int) -> list[int]:
    split = split_layers(shape.layers, stages * parts, head_layers(shape))
    return [sum(split[stage::stages]) for stage in range(stages)]


def head_layers(shape: DecoderShape) -> float:
    """How many layers the output matrix weighs as much as, in operations."""
    return shape.width * shape.vocabulary / (shape.attention_parameters() + shape.ff_parameters(True))


def _under_way(at: ClusterLayout, stage: int) -> float:
    """Micro-batches of whose activations a stage holds its layers' share at once (`pipelines.Simulated.held`)."""
    m, p, v = at.micro_batches, at.pipeline, at.interleave
    if p == 1:
        return 1.0
    if at.schedule == "gpipe":
        return m
    if v > 1:
        return min(m * v, 2 * (p - 1 - stage) + (v - 1) * min(m, p) + 1) / v
    return min(m, p if at.zero_bubble else p - stage)


def kept_of_layer(shape: DecoderShape, at: ClusterLayout, tokens: float) -> float:
    """Bytes that one layer keeps of a micro-batch for its backward pass."""
    split = at.tensor if at.sequence_parallel else 1
    if at.recompute == "full":
        return 2 * tokens * shape.width / split
    wide = shape.ff * (3 if shape.gated else 2) * (shape.active + shape.shared if shape.experts else 1)
    kept = tokens * (2 * shape.width * (5 / split + 3 / at.tensor) + 2 * wide / at.tensor)
    if not at.flash and at.recompute == "none":
        kept += 5 * tokens * min(at.sequence, 2 * shape.keys or at.sequence) * shape.heads / at.tensor
    return kept * (0.6 if at.recompute == "half" else 1.0)
