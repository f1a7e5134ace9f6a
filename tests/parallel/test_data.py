"""Sums of gradients that begin during the backward pass."""

from __future__ import annotations

from typing import Any


def test_sums_begin_early_and_know_who_has_a_gradient(four: list[dict[str, Any]]) -> None:
    for each in four:
        found = each["data"]
        assert found["buckets"] == [[4], [2, 5], [3]]  # from the last parameter to the first
        assert found["begun"] == [1, 1]  # the others wait for the second bucket, in order, of which some is missing
        assert found["gradients"] == [[10.0] * 3, [1.0] * 5, None, [40.0] * 4]
