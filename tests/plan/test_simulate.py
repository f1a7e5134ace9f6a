"""Plans: the stable keys, right in size and in time, far beyond the machine without touching its memory."""

import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.gpt import GPT
from lmforge.plan.hardware import Hardware
from lmforge.plan.simulate import expected_utilization, network_of, plan
from lmforge.recipe import Model, Parallel, Recipe, Tokens, Train, load_recipe

LAPTOP = Hardware(cores=2, memory_bytes=8 * 2**30, matrix_flops=1e11, bytes_per_second=1e10)
CARD = Hardware(cores=16, memory_bytes=2**37, gpu="Example GPU", gpu_memory_bytes=80 * 2**30, gpus=8, matrix_flops=6e14)
KEYS = {
    "parameters",
    "active_parameters",
    "flops_per_token",
    "train_flops",
    "memory_bytes_per_device",
    "fits",
    "hours",
    "utilization",
    "layout",
    "assumptions",
}
GIANT = Recipe(
    tokens=Tokens(vocab_size=5_000_000, context=30_000),
    model=Model(layers=300, d_model=18_144, heads=216, d_ff=65_536),
    train=Train(tokens=1_300_000_000_000, batch_tokens=30_000_000),
)


def test_the_default_recipe_fits_a_laptop() -> None:
    found = plan(Recipe(train=Train(steps=100)), LAPTOP, tokens_available=409_600)
    assert set(found) >= KEYS
    assert found["fits"] is True
    assert found["parameters"] == sum(p.numel() for p in GPT(network_of(Recipe(), 4096)).parameters())
    assert found["train_tokens"] == 100 * 8192
    assert found["epochs"] == 2
    assert found["train_flops"] == pytest.approx(6 * found["parameters"] * found["train_tokens"], rel=0.2)
    speed = found["train_flops"] / (found["hours"] * 3600)
    assert speed == pytest.approx(1e11 * found["utilization"])


def test_the_giant_is_only_reckoned() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(GIANT, LAPTOP)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000_000
    assert found["fits"] is False
    assert found["parameters"] == pytest.approx(1.199e12, rel=1e-3)
    assert found["memory_bytes_per_device"]["weights"] == 4 * found["parameters"]
    assert found["hours"] > 1e9


@pytest.mark.parametrize(("stated", "words"), [({"steps": 7}, 7), ({"tokens": 100_000}, 13)])
def test_length_is_the_training_loops(stated: dict[str, int], words: int) -> None:
    assert plan(Recipe(train=Train(**stated)), LAPTOP)["steps"] == words


def test_what_does_not_fit_is_found_out() -> None:
    recipe = Recipe(model=Model(layers=24, d_model=2048, heads=16), train=Train(batch_tokens=65_536))
    assert plan(recipe, LAPTOP)["fits"] is False
    small = recipe.model_copy(update={"train": Train(batch_tokens=65_536, micro_batch_tokens=256)})
    found = plan(small, LAPTOP)
    assert found["layout"]["micro_batch_tokens"] == 256
    assert found["layout"]["micro_batches"] == 256
    assert plan(small, CARD)["fits"] is True


def test_gpus_share_the_batch_and_the_time() -> None:
    one, eight = (
        plan(Recipe(parallel=Parallel(data=n), train=Train(steps=10, batch_tokens=65_536)), CARD) for n in (1, 8)
    )
    assert eight["hours"] == pytest.approx(one["hours"] / 8)
    assert eight["device_hours"] == pytest.approx(one["device_hours"])
    assert eight["layout"]["micro_batch_tokens"] == 8192
    assert eight["layout"]["precision"] == "bf16"


def test_ranks_on_one_cpu_share_its_memory() -> None:
    assert plan(Recipe(parallel=Parallel(data=4)), LAPTOP)["device_memory_bytes"] == 2 * 2**30


def test_no_hours_without_a_speed() -> None:
    found = plan(Recipe(), Hardware(cores=1, memory_bytes=2**33))
    assert found["hours"] is None
    assert any("not measured" in words for words in found["assumptions"])


def test_utilization_is_what_was_measured_on_two_cores() -> None:
    for width, measured in ((128, 0.47), (384, 0.76), (768, 0.85)):
        config = network_of(Recipe(model=Model(d_model=width)), 4096)
        assert expected_utilization(config, gpu=False) == pytest.approx(measured, abs=0.04)


@given(
    layers=st.integers(1, 200),
    heads=st.integers(1, 64),
    context=st.integers(8, 100_000),
    vocab=st.integers(257, 5_000_000),
    batch=st.integers(1, 10**9),
    micro=st.none() | st.integers(1, 10**7),
    data=st.none() | st.integers(1, 10_000),
    optimizer=st.sampled_from(["adamw", "muon"]),
    card=st.booleans(),
)
def test_every_recipe_has_a_plan(layers, heads, context, vocab, batch, micro, data, optimizer, card) -> None:  # type: ignore[no-untyped-def]
    recipe = Recipe(
        tokens=Tokens(vocab_size=vocab, context=context),
        model=Model(layers=layers, d_model=heads * 64, heads=heads),
        parallel=Parallel(data=data),
        train=Train(batch_tokens=batch, micro_batch_tokens=micro, optimizer=optimizer),
    )
    found = plan(recipe, CARD if card else LAPTOP)
    assert set(found) >= KEYS
    assert all(isinstance(value, int) and value >= 0 for value in found["memory_bytes_per_device"].values())
    assert found["hours"] > 0
    assert found["active_parameters"] <= found["parameters"]


def test_the_target_recipe_is_planned_in_seconds_by_the_formulas() -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "gpt4.toml", [])
    started = time.monotonic()
    found = plan(recipe, Hardware(cores=2, memory_bytes=24 << 30, matrix_flops=3e11))
    assert time.monotonic() - started < 20
    assert found["parameters"] == pytest.approx(1.199e12, rel=1e-3)
    assert found["train_flops"] == pytest.approx(9.35e24, rel=0.01)  # 6·N·D
    assert found["memory_bytes_per_device"]["weights"] == 4 * found["parameters"]
    assert found["memory_bytes_per_device"]["optimizer"] == 8 * found["parameters"]
    assert not found["fits"]
