"""The measured choice: stated values are not measured, the choice is kept, nothing about the weights changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Recipe
from lmforge.train import autotune
from lmforge.train.autotune import choose, cores, describe

CPU = torch.device("cpu")


def network() -> GPT:
    model = GPT(GPTConfig(vocab_size=40, context=16, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32))
    model.initialise(0)
    return model


def recipe(**train: object) -> Recipe:
    return Recipe.model_validate({"tokens": {"context": 16}, "train": train})


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "bfloat16_gain", lambda _: 0.1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_what_the_recipe_states_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_per_token", lambda *_: pytest.fail("measured"))
    plan = choose(recipe(threads=1, micro_batch_tokens=32, compile="off"), network(), CPU, 4, 10)
    assert (plan.threads, plan.micro_batch_tokens, plan.compiled, plan.reason) == (1, 32, False, "stated in the recipe")


def test_the_fastest_is_taken_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def per_token(model, replicas, threads, size, context, precision):
        return 1.0 if (replicas, size) == (1, 64) else 2.0

    monkeypatch.setattr(autotune, "_per_token", per_token)
    monkeypatch.setattr(autotune, "cores", lambda: 2)
    model = network()
    before = [p.clone() for p in model.parameters()]
    plan = choose(recipe(compile="off"), model, CPU, 4, 10)
    assert (plan.replicas, plan.threads, plan.micro_batch_tokens) == (1, 2, 64)
    assert "2 replicas on 2 threads × 32 tokens" in plan.reason
    monkeypatch.setattr(autotune, "_per_token", lambda *_: pytest.fail("measured again"))
    again = choose(recipe(compile="off"), model, CPU, 4, 10)
    assert (again.replicas, again.threads, again.micro_batch_tokens) == (1, 2, 64)
    assert again.reason.startswith("measured here before")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_noise_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        autotune,
        "_per_token",
        lambda model, replicas, threads, size, context, precision: 0.98 if replicas == 1 else 1.0,
    )
    monkeypatch.setattr(autotune, "cores", lambda: 2)
    assert choose(recipe(compile="off"), network(), CPU, 4, 10).replicas == 2


@pytest.mark.parametrize(("compiled_seconds", "taken"), [(0.5, True), (1.0, False)])
def test_compiling_must_pay_for_itself(monkeypatch: pytest.MonkeyPatch, compiled_seconds: float, taken: bool) -> None:
    model = network()
    monkeypatch.setattr(autotune, "_per_token", lambda *_, compiled=False: compiled_seconds if compiled else 1.0)
    monkeypatch.setattr(autotune.shutil, "which", lambda _: "/bin/c++")
    plan = choose(recipe(), model, CPU, 4, 100)  # 6,400 s of training
    assert plan.compiled is taken
    short = choose(recipe(), model, CPU, 4, 1)  # 64 s
    assert not short.compiled
    assert "not worth it" in short.reason


@pytest.mark.parametrize(("product", "step", "taken"), [(0.03, 0.1, "fp32"), (4.0, 0.95, "fp32"), (4.0, 0.5, "bf16")])
def test_bfloat16_is_taken_where_whole_steps_in_it_measure_faster(
    monkeypatch: pytest.MonkeyPatch, product: float, step: float, taken: str
) -> None:
    asked = []

    def per_token(model, replicas, threads, size, context, precision):
        asked.append(precision)
        return step if precision == "bf16" else 1.0

    monkeypatch.setattr(autotune, "_per_token", per_token)
    monkeypatch.setattr(autotune, "bfloat16_gain", lambda _: product)
    plan = choose(recipe(compile="off"), network(), CPU, 4, 10)
    assert plan.precision == taken
    assert ("bf16" in asked) == (product > 1)  # where one product is slow, no slow step is tried
    assert f"precision: {taken}" in describe(plan)
    assert choose(recipe(compile="off"), network(), CPU, 4, 10).precision == taken  # as kept
    assert choose(recipe(compile="off", precision="fp16"), network(), CPU, 4, 10).precision == "fp16"


def test_without_a_compiler_or_with_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune.shutil, "which", lambda _: None)
    monkeypatch.setattr(autotune, "_per_token", lambda *_, **__: 1.0)
    assert "no C++ compiler here" in choose(recipe(), network(), CPU, 4, 100).reason


def test_several_ranks_choose_alike() -> None:
    plan = choose(recipe(), network(), CPU, 2, 10, ranks=2)
    assert plan.threads == max(1, cores() // 2)
    assert not plan.compiled
    assert "threads" in describe(plan)


def test_a_real_measurement() -> None:
    assert autotune._per_token(network(), 2, 2, 32, 16, repeats=1) > 0


def on_gpu(
    monkeypatch: pytest.MonkeyPatch, speeds: dict[tuple[bool, bool], float], norms: tuple[float, float, float]
) -> autotune.ExecutionPlan:
    """The choice for a GPU, whose times and gradients are given: eager, compiled, graphs. A speed of 0 fails."""
    given = iter(norms)

    def per_token(*_: object, compiled: bool = False, graphs: bool = False) -> float:
        return 1 / speeds[compiled, graphs]

    monkeypatch.setattr(autotune, "_per_token", per_token)
    monkeypatch.setattr(autotune, "_gradient_norm", lambda *_: next(given))
    monkeypatch.setattr(autotune, "safest_on_gpu", lambda _: ("bf16", "stands here"))
    return choose(recipe(), network(), torch.device("cuda"), 4, 1000)


@pytest.mark.parametrize(("speeds", "norms", "expected"), [
    ({(False, False): 100, (True, False): 150, (True, True): 200}, (1, 1, 1), (True, True)),
    # graphs that change the gradient
    ({(False, False): 100, (True, False): 150, (True, True): 200}, (1, 1, 3), (True, False)),
    ({(False, False): 100, (True, False): 0, (True, True): 200}, (1, 1, 1), (True, True)),  # compiling alone fails
    ({(False, False): 100, (True, False): 90, (True, True): 80}, (1, 1, 1), (False, False)),
])  # fmt: skip
def test_on_a_gpu_the_fastest_code_with_the_same_gradient_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    speeds: dict[tuple[bool, bool], float],
    norms: tuple[float, float, float],
    expected: tuple[bool, bool],
) -> None:
    plan = on_gpu(monkeypatch, speeds, norms)
    assert (plan.compiled, plan.graphs) == expected
    assert plan.precision == "bf16"
    assert ("CUDA graphs" in describe(plan).split("(")[0]) == expected[1]
    assert ("another gradient" in plan.reason) == (3 in norms)
    assert ("failed here (ZeroDivisionError)" in plan.reason) == (0 in speeds.values())


def test_replayed_code_gives_the_loss_and_gradient_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # a CPU has no graphs; the wrapper around them is the same
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: function)
    model = network()
    expected = autotune._gradient_norm(model, 32, 16, "fp32", None)
    plan = autotune.ExecutionPlan(1, 1, 32, True, "", graphs=True)
    assert autotune._gradient_norm(model, 32, 16, "fp32", autotune.compiled_loss(model, plan)) == expected
    assert all(parameter.grad is None for parameter in model.parameters())
