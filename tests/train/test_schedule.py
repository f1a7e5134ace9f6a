"""Batches of the sizes that the schedule says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.train.journal import read_lines
from lmforge.train.loop import train
from tests.train.runs import losses, recipe_of


def test_a_batch_smaller_than_a_row_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_tokens: 16 is less than one row of 32"):
        train(recipe_of(tiny_run, batch_tokens=16), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")
    with pytest.raises(InputError, match="smaller than one batch"):
        train(recipe_of(tiny_run, batch_tokens=50_000_000), tiny_run / "tokens", tmp_path / "t", tmp_path / "m")


def test_a_batch_that_grows_takes_the_same_rows(tiny_run: Path, tmp_path: Path) -> None:
    """The journal counts its tokens, no row comes twice, and a batch's gradient is the mean over its own tokens."""
    recipe = recipe_of(tiny_run, batch_schedule=[[0, 64], [0.5, 256]], optimizer="sgd", peak_lr=1e-9, ensemble=0)
    train(recipe, tiny_run / "tokens", tmp_path / "a", tmp_path / "am")
    lines = [line for line in read_lines(tmp_path / "a" / "metrics.jsonl") if "loss" in line]
    assert [line["tokens"] for line in lines] == [
        *range(64, 7 * 64, 64),
        *range(6 * 64 + 256, 6 * 64 + 6 * 256 + 1, 256),
    ]
    constant = recipe_of(tiny_run, batch_tokens=64, steps=30, optimizer="sgd", peak_lr=1e-9, ensemble=0)
    train(constant, tiny_run / "tokens", tmp_path / "b", tmp_path / "bm")
    same = [loss for _, loss in losses(tmp_path / "b")]
    grown = [line["loss"] for line in lines]
    assert grown[:6] == pytest.approx(same[:6], rel=1e-4)
    assert grown[6:] == pytest.approx([sum(same[first : first + 4]) / 4 for first in range(6, 30, 4)], rel=2e-2)
