"""Licence and source go with a model through training."""

from __future__ import annotations

from pathlib import Path

from lmforge.train.origin import keep_origin, kept_origin


def test_only_the_origin_is_kept(tmp_path: Path) -> None:
    assert kept_origin(tmp_path) == {}
    keep_origin(tmp_path / "train", {"license": "mit", "source": "a test", "step": 3})
    assert kept_origin(tmp_path / "train") == {"license": "mit", "source": "a test"}
