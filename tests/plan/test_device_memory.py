"""Bytes on a device of a cluster: what each degree divides, what each stage holds."""

from __future__ import annotations

import dataclasses

import pytest

from lmforge.plan.device_memory import layers_of_stage, memory_of, memory_of_stage
from lmforge.plan.pipelines import Passes, simulate
from lmforge.plan.step_time import ClusterLayout, DecoderShape

SHAPE = DecoderShape(24, 2048, 16, 8192, 50_000)


def test_sharding_divides_what_it_shards() -> None:
    whole, sharded = (memory_of(SHAPE, ClusterLayout(2048, 64, 1, data=8, shard=each)) for each in (1, 8))
    for name in ("weights", "gradients", "optimizer"):
        assert sharded[name] == whole[name] / 8
    assert memory_of(SHAPE, ClusterLayout(2048, 64, 1, 8))["weights"] == whole["weights"] / 8
    kept = memory_of(SHAPE, ClusterLayout(2048, 64, 1, data=8, shard=8, reshard=False))
    assert (kept["weights"], kept["optimizer"]) == (whole["weights"], sharded["optimizer"])


def test_all_stages_hold_the_whole_network_once() -> None:
    untied = dataclasses.replace(SHAPE, tied=False)
    for pipeline, parts in ((1, 1), (4, 1), (8, 3), (5, 1)):
        at = ClusterLayout(2048, 64, 1, pipeline=pipeline, interleave=parts)
        stages = range(pipeline)
        assert sum(layers_of_stage(untied, at, stage) for stage in stages) == 24
        held = sum(memory_of_stage(untied, at, stage)["weights"] for stage in stages)
        assert held == pytest.approx(2 * untied.parameters())


@pytest.mark.parametrize(("schedule", "parts"), [("gpipe", 1), ("1f1b", 1), ("zero-bubble", 1), ("interleaved", 2)])
def test_activations_are_of_the_micro_batches_that_the_simulation_holds(schedule: str, parts: int) -> None:
    shape = dataclasses.replace(SHAPE, vocabulary=1)  # so that layers are split evenly
    at = ClusterLayout(2048, 64, 1, pipeline=4, interleave=parts, schedule=schedule)  # type: ignore[arg-type]
    held = simulate(schedule, 4, at.micro_batches, Passes(1, 2, 1), parts).held  # type: ignore[arg-type]
    one = memory_of(shape, ClusterLayout(2048, 1, 1))["activations"] / (4 * parts)
    for stage in range(4):
        found = memory_of_stage(shape, at, stage)["activations"] / one
        assert found == pytest.approx(held[stage], abs=0.01)


def test_recomputation_and_tensor_parallel_leave_less() -> None:
    at = ClusterLayout(2048, 64, 4, 4)
    none, half, full = (
        memory_of(SHAPE, dataclasses.replace(at, recompute=each))["activations"] for each in ("none", "half", "full")
    )
    assert full < half < none
    assert memory_of(SHAPE, dataclasses.replace(at, sequence_parallel=True))["activations"] < none
