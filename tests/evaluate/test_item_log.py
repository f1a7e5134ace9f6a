"""Answers are on the disk as items end, and a line that a kill cut off is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.item_log import ItemLog


def test_it_goes_on_from_what_was_answered(tmp_path: Path) -> None:
    with ItemLog(tmp_path / "items", "key") as log:
        log.add([1, 2], {"log_p": -0.1})
        assert ItemLog(tmp_path / "items", "key").get([1, 2]) == {"log_p": -0.1}  # before it is closed
        log.add("b", 2)
    path = tmp_path / "items" / "key.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    with ItemLog(tmp_path / "items", "key") as log:
        assert (log.get([1, 2]), log.get("b"), log.found) == ({"log_p": -0.1}, None, 1)
        log.add("b", 3)
    assert ItemLog(tmp_path / "items", "key").get("b") == 3
    assert ItemLog(tmp_path / "items", "other").get("b") is None


def test_without_a_folder_it_lives_in_memory(tmp_path: Path) -> None:
    with ItemLog(None, "key") as log:
        log.add("a", 1)
        assert log.get("a") == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ItemLog(tmp_path / "file", "key")
