"""The control flow of training: exact resume under every regime, going back, what is written of each step."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lmforge.errors import InputError, LmforgeError
from lmforge.model.config import network_of
from lmforge.parallel.data_parallel import DataParallel
from lmforge.recipe import Recipe, load_recipe
from lmforge.record import content_hash
from lmforge.tokens.loader import Batch
from lmforge.tokens.shards import Shards
from lmforge.train import step as step_module
from lmforge.train.journal import read_lines
from lmforge.train.loop import train
from lmforge.train.precision import LossScaler
from lmforge.train.step import TrainStep
from tests.train.runs import losses, one_rank, poisoned, recipe_of, skipped
from tests.train.test_tensorboard import scalars


def test_the_loss_falls_and_the_figures_are_there(tiny_run: Path, tmp_path: Path) -> None:
    figures = train(recipe_of(tiny_run, steps=40), tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    assert {"steps", "tokens", "seconds", "tokens_per_second", "valid_bits_per_byte", "weights_sha256"} <= set(figures)
    values = [loss for _, loss in losses(tmp_path / "train")]
    assert len(values) == 40
    assert values[-1] < 0.8 * values[0]
    assert content_hash(tmp_path / "model")
    valid = [
        line["valid_bits_per_byte"]
        for line in read_lines(tmp_path / "train" / "metrics.jsonl")
        if "valid_bits_per_byte" in line
    ]
    singles = [row["bits_per_byte"] for row in figures["candidates"] if len(row["members"]) == 1]
    assert min(singles) == pytest.approx(min(valid[1:]), rel=1e-9)  # those after which weights were kept
    assert figures["valid_bits_per_byte"] <= min(singles)
    assert figures["valid_bits_per_byte"] == min(
        row["bits_per_byte"] for row in figures["candidates"] if row["networks"] == 1
    )
    names = {row["name"] for row in figures["candidates"]}
    assert {
        "step 34",
        "step 40",
        "average of the last 4",
        "greedy soup",
        "4 networks together",
        "moving average",
    } <= names


REGIMES: dict[str, dict[str, object]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "over the epoch's edge": {"batch_tokens": 4096, "micro_batch_tokens": 4096},
    "two replicas": {"threads": 2},
    "in the middle of accumulation": {"inside": True, "micro_batch_tokens": 64},
    "bfloat16": {"precision": "bf16"},
    "a loss scale that moves": {"precision": "fp16"},
    "no ensembles": {"ensemble": 0},
    "a batch that grows": {"batch_schedule": [[0, 64], [0.3, 128], [0.6, 320]], "threads": 2},
}


@pytest.mark.parametrize("regime", REGIMES)
def test_stopped_and_started_again_equals_never_stopped(
    tiny_run: Path, tmp_path: Path, regime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScaler, "DOUBLE_AFTER", 4)
    keys = {"checkpoint_every": 5} | REGIMES[regime]
    inside = keys.pop("inside", False)
    recipe = recipe_of(tiny_run, **keys)
    whole = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    if regime == "over the epoch's edge":
        assert Shards.open(tiny_run / "tokens", "train").tokens < 12 * 4096
    fail_at, now = {3, 7, 8, 11}, [0]
    real_step, real_move = TrainStep.run, step_module.to_device

    def step(self: TrainStep, number: int, batch: Batch) -> dict[str, Any]:
        now[:] = [number, 0]
        if number in fail_at and not inside:
            fail_at.remove(number)
            raise KeyboardInterrupt
        return real_step(self, number, batch)

    def to_device(part: Batch, device: torch.device) -> Any:
        now[1] += 1
        if now[0] in fail_at and inside and now[1] == 3:  # of four micro-batches
            fail_at.remove(now[0])
            raise KeyboardInterrupt
        return real_move(part, device)

    monkeypatch.setattr(TrainStep, "run", step)
    monkeypatch.setattr(step_module, "to_device", to_device)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    again = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["candidates"] == whole["candidates"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[-1][1] < losses(tmp_path / "a")[0][1]


@pytest.mark.parametrize(
    "sets",
    [
        ["tokens.packing=best_fit"],
        ["train.context_schedule=[[0, 8], [0.5, 32]]"],
        ["train.mixture={unknown = 2, code = [[0, 1], [0.5, 0.2]]}"],
    ],
    ids=["best fit", "contexts", "mixture"],
)
def test_every_order_of_the_data_resumes_exactly(
    tiny_run: Path, tmp_path: Path, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_run / "recipe.toml", sets)
    whole = train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    plain = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "c", tmp_path / "cm")
    real = TrainStep.run

    def dies(self: TrainStep, step: int, batch: Batch) -> dict[str, float]:
        if step == 7:
            raise KeyboardInterrupt
        return real(self, step, batch)

    monkeypatch.setattr(TrainStep, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    monkeypatch.setattr(TrainStep, "run", real)
    again = train(recipe, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"] != plain["weights_sha256"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_every_step_tells_how_long_it_waited_for_data(tiny_run: Path, tmp_path: Path) -> None:
    train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    waits = [line["data_wait"] for line in read_lines(tmp_path / "t" / "metrics.jsonl") if "loss" in line]
    assert len(waits) == 12
    assert all(0 <= wait < 1 for wait in waits)


def test_bad_steps_in_a_row_lead_back_to_the_checkpoint(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_run, steps=24)
    poisoned(monkeypatch, {9, 10, 11}, lambda x: x * math.nan)
    figures = train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    assert [line["step"] for line in skipped(tmp_path / "t")] == [10, 11, 12]
    assert all(line["skipped"] == "left out after a return to a checkpoint" for line in skipped(tmp_path / "t"))
    assert json.loads((tmp_path / "t" / "excluded.json").read_text()) == {"steps": [9, 10, 11], "returns": 1}
    assert [
        line["step"] for line in read_lines(tmp_path / "t" / "metrics.jsonl") if "lr" in line or "skipped" in line
    ] == [*range(1, 25)]
    assert figures["valid_bits_per_byte"] < 8


def test_what_going_back_does_not_help_stops_with_the_cause(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LmforgeError, match=r"steps \d+ to \d+ had to be skipped.*: the loss is .*nan; lower train.peak_lr"
    ):
        train(recipe_of(tiny_run, peak_lr=1e30, warmup=0), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")


def test_statistics_are_in_the_metrics(tiny_run: Path, tmp_path: Path) -> None:
    train(recipe_of(tiny_run, validate_every=4), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    lines = read_lines(tmp_path / "t" / "metrics.jsonl")
    layers = {line["step"]: line["layers"] for line in lines if "layers" in line}
    assert [*layers] == [4, 8, 12]
    assert set(layers[4]) == {"embed", "blocks.0", "blocks.1", "norm"}
    assert all("noise_scale_tokens" in line for line in lines if "layers" in line)
    assert all(set(line["activations"]) == set(layers[4]) for line in lines if "valid_bits_per_byte" in line)


def test_events_and_profile_are_written_and_change_nothing(tiny_run: Path, tmp_path: Path) -> None:
    plain = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    watched = train(
        recipe_of(tiny_run, tensorboard=True, profile=2), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm"
    )
    assert watched["weights_sha256"] == plain["weights_sha256"]
    (events,) = (tmp_path / "b" / "tensorboard").iterdir()
    written = scalars(events)
    assert [(step, pytest.approx(value)) for step, tag, value in written if tag == "loss"] == losses(tmp_path / "b")
    assert {
        "lr",
        "grad_norm",
        "tokens_per_second",
        "utilization",
        "memory_bytes",
        "data_wait",
        "valid_bits_per_byte",
    } <= {tag for _, tag, _ in written}
    assert len([*(tmp_path / "b" / "profile").glob("step-00000004.*")]) == 2
    lines = [line for line in read_lines(tmp_path / "b" / "metrics.jsonl") if "loss" in line]
    assert all(line["utilization"] > 0 and line["memory_bytes"] > 1e7 for line in lines)
    assert not (tmp_path / "a" / "tensorboard").exists()


def test_frozen_weights_cost_no_gradients(tiny_run: Path, tmp_path: Path) -> None:
    with one_rank(recipe_of(tiny_run), tiny_run / "tokens", tmp_path) as run:
        whole = run.flops_per_token(32)
        run.model.embed.requires_grad_(False)
        assert run.flops_per_token(32) == pytest.approx(whole * 2 / 3)
        assert run.flops_per_token(16) < run.flops_per_token(32)


def test_the_network_follows_the_recipe() -> None:
    config = network_of(
        Recipe.model_validate({"model": {"layers": 3, "d_model": 64, "heads": 2}, "tokens": {"context": 99}}), 777
    )
    assert (config.layers, config.d_ff, config.kv_heads, config.context, config.vocab_size) == (3, 256, 2, 99, 777)


@pytest.mark.slow
def test_five_random_kills(tiny_run: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of a real command, until it gets through: same losses, same weights."""
    rng = random.Random(7)
    for name in ("whole", "killed"):
        run = tmp_path / name
        overrides = ["--set", f"run_dir={run}", "--set", "train.steps=150", "--set", "train.checkpoint_every=10"]
        command = [
            sys.executable,
            "-m",
            "lmforge.cli",
            "run",
            str(tiny_run / "recipe.toml"),
            "--until",
            "train",
            *overrides,
        ]
        if name == "killed":
            kills = 0
            while kills < 5:
                process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                try:
                    process.wait(rng.uniform(3.0, 9.0))
                    break  # it got through
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
            assert kills >= 2
        subprocess.run(command, check=True, capture_output=True)
    assert losses(tmp_path / "whole" / "train") == losses(tmp_path / "killed" / "train")
    records = [
        json.loads((tmp_path / n / "record.json").read_text())["stages"]["train"]["figures"]
        for n in ("whole", "killed")
    ]
    assert records[0]["weights_sha256"] == records[1]["weights_sha256"]


def test_ranks_that_see_different_checkpoints_do_not_start(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataParallel, "gather", lambda _, value: [value, 8])
    with pytest.raises(InputError, match=r"ranks go on from different steps \(0, 8\); all machines must see the same"):
        train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
