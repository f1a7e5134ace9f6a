"""The best layout of a cluster, what it takes, and what must change where nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.model.config import GPTConfig, network_of
from lmforge.plan.accelerators import DESCRIPTION, cluster_of
from lmforge.plan.clusters import goodput_of, plan_for, plan_on, shape_of
from lmforge.plan.search import USABLE, search
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


def test_what_must_change_for_the_layout_to_share_evenly_is_said() -> None:
    figures = plan_for(load_recipe(RECIPES / "gpt4.toml"), cluster_of("h200x4096"))
    keys, found = figures["layout"], figures.get("adjust", [])
    rows = 106 / (keys["data"] * keys["shard"] * keys["expert"])
    assert any("train.batch_tokens" in line for line in found) == (rows % keys["micro"] != 0)
    even = plan_on(SMALL, cluster_of("a100x16"), 2048, 512 * 2048, 1000)
    assert "adjust" not in even


def test_failures_cost_time_and_money() -> None:
    figures = plan_on(SMALL, cluster_of("a100x16"), 2048, 512 * 2048, 1000)
    lost = figures["goodput"]
    assert 0.5 < lost["goodput"] <= 1
    assert lost["calendar_hours"] == pytest.approx(figures["hours"] / lost["goodput"])
    assert figures["device_hours"] >= lost["calendar_hours"] * 16
    assert figures["dollars"] == pytest.approx(figures["device_hours"] * 1.6)
    many = goodput_of(shape_of(SMALL), cluster_of("h100x16384"), 30 * 86_400)
    few = goodput_of(shape_of(SMALL), cluster_of("h100x1024"), 30 * 86_400)
    assert many["goodput"] < few["goodput"]
    assert many["failures"] > 8 * few["failures"]
    assert many["checkpoint_every"] < few["checkpoint_every"]


def test_the_description_is_planned_on_its_own_hardware() -> None:
    figures = plan_for(load_recipe(RECIPES / "gpt4.toml"), DESCRIPTION)
    assert figures["fits"]
    told = figures["description"]
    assert round(told["parameters"] / 1e9) == 1199
    assert told["train_flops"] == pytest.approx(9.35e24, rel=1e-3)
    assert told["utilization"] == pytest.approx(0.33, abs=0.005)
    assert told["steps"] == 406_250
    assert "not 1.8e+15" in told["disagreements"][0]
    assert f"{100 * figures['utilization']:.0f}% here" in told["disagreements"][-1]
