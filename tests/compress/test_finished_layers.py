"""What a step keeps of its layers."""

from __future__ import annotations

from pathlib import Path

import torch

from lmforge.compress.finished_layers import FinishedLayers, Tensors


def test_a_layer_is_made_once_for_what_it_depends_on(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Tensors:
        made.append("x")
        return {"codes": torch.arange(6).view(2, 3).t(), "error": torch.tensor(0.5)}

    first = FinishedLayers(tmp_path, (), 4)("blocks.0.ff.up", make)
    again = FinishedLayers(tmp_path, (), 4)("blocks.0.ff.up", make)
    assert len(made) == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    for finished in (FinishedLayers(tmp_path, ("embed",), 4), FinishedLayers(tmp_path, (), 8)):
        finished("blocks.0.ff.up", make)
    FinishedLayers(tmp_path, (), 4)("blocks.0.ff.down", make)
    assert len(made) == 4
