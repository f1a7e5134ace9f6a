"""Honest stops: SIGTERM and a time that is over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lmforge.errors import Interrupted
from lmforge.tokens.loader import Batch
from lmforge.train.loop import train
from lmforge.train.step import TrainStep
from tests.train.runs import losses, recipe_of


def test_sigterm_saves_and_says_how_to_go_on(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tiny_run, checkpoint_every=100)
    real = TrainStep.run

    def term(self: TrainStep, step: int, batch: Batch) -> dict[str, float]:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, step, batch)

    monkeypatch.setattr(TrainStep, "run", term)
    with pytest.raises(
        Interrupted, match=r"stopped after step 5 of 12, saved in .*step-00000005; the same command goes on"
    ):
        train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    monkeypatch.setattr(TrainStep, "run", real)
    train(recipe, tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    assert [step for step, _ in losses(tmp_path / "t")] == list(range(1, 13))


def test_when_its_time_is_over_it_saves_and_the_same_command_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    whole = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    for step in (1, 2):
        with pytest.raises(
            Interrupted, match=rf"stopped after step {step} of 12, saved in .*; the same command goes on"
        ):
            train(recipe_of(tiny_run, max_seconds=1e-6), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    again = train(recipe_of(tiny_run), tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
