"""Gram matrices of inputs: of a whole pass, or block by block with what came before changed."""

from __future__ import annotations

from pathlib import Path

import torch

from lmforge.compress.calibration import grams_by_block, input_grams
from tests.compress.conftest import context_of, relative, small_model


@torch.no_grad()
def test_gram_matrices_block_by_block_are_those_of_a_whole_pass(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    whole = input_grams(model, context.calibration)
    parts = list(grams_by_block(model, context.calibration))
    assert [sorted(part)[0].split(".")[0] for part in parts] == ["blocks", "blocks", "embed"]
    for part in parts:
        for name, gram in part.items():
            assert relative(gram, whole["head" if name == "embed" else name]) < 1e-5
    changing = grams_by_block(model, context.calibration)
    next(changing)
    model.blocks[0].ff.down.weight.mul_(2)  # type: ignore[union-attr]
    name = "blocks.1.ff.up"
    assert relative(next(changing)[name], whole[name]) > 1e-3
