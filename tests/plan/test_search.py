"""The search for a layout: what it may choose, that nothing it could have chosen by hand is faster."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lmforge.model.config import network_of
from lmforge.plan.accelerators import cluster_of
from lmforge.plan.clusters import shape_of
from lmforge.plan.device_memory import memory_of
from lmforge.plan.search import USABLE, Space, axes_of, candidate, layouts, search, simulated
from lmforge.plan.step_time import ClusterLayout, DecoderShape
from lmforge.recipe import load_recipe

SMALL = DecoderShape(24, 2048, 16, 8192, 50_000)
MIXTURE = DecoderShape(24, 2048, 16, 2048, 50_000, experts=16, active=2)
HAND = (  # tensor, pipeline, context, schedule, parts
    (8, 1, 1, "1f1b", 1),
    (8, 1, 4, "1f1b", 1),
    (8, 4, 1, "interleaved", 8),
    (8, 12, 1, "1f1b", 1),
    (8, 12, 1, "zero-bubble", 1),
    (8, 25, 1, "1f1b", 1),
    (8, 25, 2, "zero-bubble", 1),
    (4, 10, 4, "zero-bubble", 1),
    (8, 30, 2, "gpipe", 1),
    (8, 16, 16, "1f1b", 1),
)


@pytest.mark.parametrize("devices", [1024, 4096, 16_384])
def test_the_layout_chosen_for_gpt4_is_no_slower_than_hand_layouts(devices: int) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "gpt4.toml")
    shape = shape_of(network_of(recipe, recipe.tokens.vocab_size))
    cluster = cluster_of(f"h200x{devices}")
    fitting, _ = search(shape, cluster, 30_000, 106)
    assert fitting[0].layout.devices <= devices
    room, compared = USABLE * cluster.accelerator.memory_bytes, 0
    for tensor, pipeline, context, schedule, parts in HAND:
        copies = min(106, devices // (tensor * pipeline * context))
        for recompute in ("none", "full") if copies else ():
            hand = ClusterLayout(
                30_000, 106, 1, tensor, pipeline, parts, context, data=copies, shard=copies, recompute=recompute,
                sequence_parallel=True, schedule=schedule, reshard=pipeline == 1,
            )  # type: ignore[arg-type]  # fmt: skip
            rounds = max(1, hand.micro_batches // pipeline)
            if hand.micro_batches % rounds or sum(memory_of(shape, hand).values()) > room:
                continue
            by_hand = simulated(shape, cluster.accelerator, candidate(shape, cluster.accelerator, hand))
            assert fitting[0].seconds <= by_hand.seconds * 1.001, hand
            compared += 1
    assert compared >= 1


def test_degrees_make_the_processes_as_parallel_says_them() -> None:
    for shape in (SMALL, MIXTURE):
        for layout in layouts(shape, cluster_of("a100x16"), 2048, 64, Space(strict=True)):
            axes = axes_of(layout)
            assert all(size >= 1 for size in axes.values())
            assert math.prod(axes.values()) == layout.devices == 16
            assert 64 % layout.data == 0
            assert not shape.experts or shape.experts % axes["expert"] == 0


def test_what_is_stated_stays() -> None:
    space = Space(stated=(("tensor", 2), ("pipeline", 4), ("shard", 2)), strict=True)
    found = [*layouts(SMALL, cluster_of("a100x16"), 2048, 64, space)]
    assert found
    assert {(each.tensor, each.pipeline, each.shard, each.devices) for each in found} == {(2, 4, 2, 16)}
    assert not [*layouts(SMALL, cluster_of("a100x16"), 2048, 64, Space(stated=(("data", 3),), strict=True))]
    experts = Space(expert=(1, 4))
    assert {each.expert for each in layouts(MIXTURE, cluster_of("a100x16"), 2048, 64, experts)} == {1, 4}


def test_the_first_few_are_simulated_and_the_formula_comes_near() -> None:
    fitting, nearest = search(SMALL, cluster_of("a100x64"), 2048, 512, Space(stated=(("pipeline", 4),)))
    assert nearest is None
    simulations = [each for each in fitting if each.simulated is not None]
    assert 5 <= len(simulations) < len(fitting)
    for each in simulations:
        assert each.simulated == pytest.approx(each.foretold, rel=0.15)
