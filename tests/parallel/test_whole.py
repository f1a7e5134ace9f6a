"""Wholes from parts and parts from wholes."""

from __future__ import annotations

from typing import Any


def test_parts_make_the_whole_and_what_one_stage_has_arrives(four: list[dict[str, Any]]) -> None:
    assert four[0]["whole"]["same"] == {"rows": True, "columns": True}
    assert four[0]["whole"]["others"] == {"stage 0": [0.0, 0.0], "stage 1": [1.0, 1.0]}
    assert four[1]["whole"]["parts"]["rows"] == [[8, 9, 10, 11], [12, 13, 14, 15], [20, 21, 22, 23]]
    assert four[0]["whole"]["parts"]["columns"] == [[0], [4], [8], [12], [16], [20]]
    assert four[3]["whole"]["others"] == {}
