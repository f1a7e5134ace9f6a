"""Seconds of a step behave as the parts they are made of."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.plan.accelerators import ACCELERATORS
from lmforge.plan.step_time import ClusterLayout, DecoderShape, step_time

SHAPE = DecoderShape(32, 4096, 32, 16_384, 50_000)
H100 = ACCELERATORS["h100"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8]), st.sampled_from([1, 2]))
def test_every_part_is_a_time_and_no_layout_beats_the_peak(tensor: int, pipeline: int, data: int, micro: int) -> None:
    layout = ClusterLayout(2048, 64, micro, tensor, pipeline, data=data, sequence_parallel=tensor > 1)
    time = step_time(SHAPE, H100, layout)
    assert all(part >= 0 for part in dataclasses.asdict(time).values())
    assert (time.tensor == 0) == (tensor == 1)
    assert (time.bubble == 0) == (pipeline == 1)
    flops = SHAPE.model_flops(64 * 2048, 2048)
    assert flops / time.total / layout.devices < H100.flops * H100.sustained


def test_more_recomputation_takes_longer_and_interleaving_less() -> None:
    base = ClusterLayout(2048, 64, 1, 2, 4, sequence_parallel=True)
    times = [
        step_time(SHAPE, H100, dataclasses.replace(base, recompute=each)).total for each in ("none", "half", "full")
    ]
    assert times == sorted(times)
    assert times[0] < times[2]
    bubbles = [step_time(SHAPE, H100, dataclasses.replace(base, interleave=each)).bubble for each in (1, 2, 4)]
    assert bubbles[0] == 2 * bubbles[1] == 4 * bubbles[2]


def test_parameters_of_known_shapes() -> None:
    assert abs(DecoderShape(96, 12_288, 96, 49_152, 50_257).parameters() / 175e9 - 1) < 0.01
    llama = DecoderShape(126, 16_384, 128, 53_248, 128_256, 8, gated=True, tied=False)
    assert abs(llama.parameters() / 405e9 - 1) < 0.01
    deepseek = DecoderShape(61, 7168, 128, 2048, 129_280, 24, 160, True, 256, 8, 1, 3, 18_432, tied=False)
    assert abs(deepseek.parameters() / 671e9 - 1) < 0.05
    # its compressed keys and queries hold fewer parameters than plain ones of the same products
    assert abs(deepseek.parameters(active=True) / 37e9 - 1) < 0.3
