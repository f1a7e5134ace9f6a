"""Layouts without their devices: everything that is wrong, at once, and what each stage holds."""

from __future__ import annotations

import torch.distributed as dist

from lmforge.model.config import network_of
from lmforge.model.gpt import GPT
from lmforge.plan.accelerators import cluster_of
from lmforge.plan.dry_run import dry_run
from lmforge.recipe import Model, Parallel, Recipe, Tokens, Train

KEYS = ("parallel.", "train.", "tokens.", "model.")


def test_a_good_layout_has_no_problems_and_holds_its_share() -> None:
    recipe = Recipe(parallel=Parallel(shard=4, data=2), model=Model(layers=7))
    found = dry_run(recipe)
    assert found["problems"] == []
    assert found["processes"] == 8
    whole = sum(parameter.numel() for parameter in GPT(network_of(recipe, 4096)).parameters())
    (stage,) = found["stages"]
    assert whole / 4 <= stage["parameters"] <= whole / 4 * 1.01
    assert set(stage["memory_bytes"]) >= {"weights", "gradients", "optimizer", "activations", "logits"}
    assert not dist.is_initialized()


def test_everything_that_is_wrong_is_said_at_once_with_the_key_to_change() -> None:
    recipe = Recipe(
        parallel=Parallel(shard=4, tensor=8, expert=5, pipeline=9, context=3),
        train=Train(micro_batch_tokens=300, batch_tokens=2048),
    )
    problems = dry_run(recipe, cluster_of("h100x64"))["problems"]
    assert all(problem.startswith(KEYS) for problem in problems)
    for words in (
        "4320 processes, and there are 64",
        "train.micro_batch_tokens: 300 is no number of whole rows",
        "parallel.context: 3 processes",
        "train.batch_tokens: 8 rows of 256 tokens for 20 processes",
        "parallel.tensor 8: model.kv_heads 4",
        "parallel.expert 5: the network has no experts",
        "parallel.pipeline 9: 6 layers",
    ):
        assert any(words in problem for problem in problems), words


def test_what_does_not_fit_names_the_stage_and_what_is_largest() -> None:
    large = Recipe(
        model=Model(layers=48, d_model=8192, heads=64), tokens=Tokens(vocab_size=50_000, context=2048),
        train=Train(batch_tokens=2**20), parallel=Parallel(shard=2),
    )  # fmt: skip
    (problem,) = dry_run(large, cluster_of("h100x2"))["problems"]
    assert "stage 0 needs" in problem
    assert "most of it" in problem
    fits = large.model_copy(update={"parallel": Parallel(layout="auto")})
    found = dry_run(fits, cluster_of("h100x256"))
    assert not [problem for problem in found["problems"] if "needs" in problem]


def test_an_error_inside_a_network_is_found_too(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def broken(*_: object) -> None:
        raise RuntimeError("shape '[3]' is invalid")

    monkeypatch.setattr("lmforge.parallel.mesh_layout.apply_shard", broken)
    (problem,) = dry_run(Recipe(parallel=Parallel(shard=2)))["problems"]
    assert "stage 0: shape '[3]' is invalid" in problem
