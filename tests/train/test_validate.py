"""Validation rows."""

from __future__ import annotations

from pathlib import Path

import torch

from lmforge.tokens.shards import Shards
from lmforge.train.validate import validation_rows


def test_validation_rows_are_spread_and_fixed(tiny_run: Path) -> None:
    shards = Shards.open(tiny_run / "tokens", "valid")
    inputs, targets = validation_rows(shards, 32, 512)
    assert inputs.shape == targets.shape
    assert inputs.shape[0] <= 16
    shifted = inputs[:, 1:]
    assert ((targets[:, :-1] == shifted) | (targets[:, :-1] == -1)).all()
    assert torch.equal(inputs, validation_rows(shards, 32, 512)[0])
