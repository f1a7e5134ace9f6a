"""The best layout of a cluster, what it takes, and what must change where nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.model.config import GPTConfig, network_of
from lmforge.plan.accelerators import DESCRIPTION, cluster_of
from lmforge.plan.clusters import USABLE, memory_of, plan_for, plan_on, search, shape_of
from lmforge.plan.step_time import ClusterLayout, step_time
from lmforge.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = GPTConfig(vocab_size=50_000, context=2048, layers=24, d_model=2048, heads=16, kv_heads=16, d_ff=8192)


def test_the_best_layout_fits_and_is_the_fastest_that_does() -> None:
    cluster = cluster_of("a100x16")
    fitting, nearest = search(shape_of(SMALL), cluster, 2048, 512)
    assert nearest is None
    assert all(sum(each.memory.values()) <= USABLE * cluster.accelerator.memory_bytes for each in fitting)
    assert [each.seconds for each in fitting] == sorted(each.seconds for each in fitting)
    answer = plan_on(SMALL, cluster, 2048, 512 * 2048, 1000)
    assert answer["step_seconds"]["total"] == fitting[0].seconds
    assert answer["hours"] == pytest.approx(fitting[0].seconds * 1000 / 3600)
    assert 0.1 < answer["utilization"] < 0.75
    assert all(each["step_seconds"] >= fitting[0].seconds for each in answer["runners_up"])


def test_where_nothing_fits_it_says_what_must_change() -> None:
    recipe = load_recipe(RECIPES / "gpt4.toml")
    config = network_of(recipe, recipe.tokens.vocab_size)
    answer = plan_on(config, cluster_of("h100x8"), 30_000, 3_200_000, 10)
    assert not answer["fits"]
    assert "times as many devices" in answer["change"]


def test_sharding_divides_what_it_shards() -> None:
    shape = shape_of(SMALL)
    whole, sharded = (memory_of(shape, ClusterLayout(2048, 64, 1, data=8, shard=each)) for each in (1, 8))
    assert sharded["weights"] == whole["weights"] / 8
    assert sharded["optimizer"] == whole["optimizer"]  # spread over the copies in either case
    assert memory_of(shape, ClusterLayout(2048, 64, 1, 8))["weights"] == whole["weights"] / 8


@pytest.mark.parametrize("devices", [1024, 4096, 16_384])
def test_the_layout_chosen_for_gpt4_is_no_slower_than_hand_layouts(devices: int) -> None:
    recipe = load_recipe(RECIPES / "gpt4.toml")
    config = network_of(recipe, recipe.tokens.vocab_size)
    cluster, shape = cluster_of(f"h200x{devices}"), shape_of(config)
    fitting, _ = search(shape, cluster, 30_000, 106)
    assert fitting
    room = USABLE * cluster.accelerator.memory_bytes
    for tensor, pipeline, context in ((8, 12, 1), (8, 25, 1), (8, 1, 4), (4, 10, 4), (8, 30, 2)):
        data = min(106, devices // (tensor * pipeline * context))
        hand = ClusterLayout(
            30_000, 106, 1, tensor, pipeline, context=context, data=max(1, data), shard=1 if pipeline > 1 else data,
            recompute="full", sequence_parallel=True,
        )  # fmt: skip
        if data and sum(memory_of(shape, hand).values()) <= room:
            assert fitting[0].seconds <= step_time(shape, cluster.accelerator, hand).total * 1.001


def test_the_description_is_planned_on_its_own_hardware() -> None:
    figures = plan_for(load_recipe(RECIPES / "gpt4.toml"), DESCRIPTION)
    assert figures["fits"]
    told = figures["description"]
    assert round(told["parameters"] / 1e9) == 1199
    assert told["train_flops"] == pytest.approx(9.35e24, rel=1e-3)
    assert told["utilization"] == pytest.approx(0.33, abs=0.005)
    assert told["steps"] == 406_250
    assert "not 1.8e+15" in told["disagreements"][0]
