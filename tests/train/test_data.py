"""What a run reads is checked first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.train.loop import train
from tests.train.runs import recipe_of


def test_altered_shards_are_refused_before_the_first_step(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "tokens", tmp_path / "tokens")
    path = next((tmp_path / "tokens").glob("train-*.bin"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=rf"{path.name}: its bytes do not match the checksum in index\.json"):
        train(recipe_of(tiny_run), tmp_path / "tokens", tmp_path / "t", tmp_path / "m")
