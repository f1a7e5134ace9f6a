"""The softmax kinds over processes mix what they mix of whole rows: windows, strides and pooled blocks of documents
that end anywhere."""

from __future__ import annotations

import pytest
from bench.ranks import on_ranks

from tests.parallel.shared_rows import Setting, largest_differences

SPARSE = {"attention": "sparse", "window": 5, "stride": 3, "pool": 4}
SETTINGS: list[Setting] = [
    ({"attention": "full", "kv_heads": 2}, 26, True),
    ({"attention": "full"}, 24, False),
    ({"attention": "window", "window": 5, "positions": "learned"}, 26, True),
    ({"attention": "strided", "window": 5, "stride": 3}, 25, True),
    ({"attention": "pooled", "pool": 4}, 25, False),
    (SPARSE, 26, True),
    (SPARSE | {"pooling": "conv", "kv_heads": 2}, 27, True),
    (SPARSE | {"pooling": "max"}, 27, True),
    ({"attention": "sparse", "window": 2, "stride": 2, "pool": 2}, 3, True),  # fewer tokens than pieces
]


def test_two_processes_mix_what_one_does() -> None:
    for differences in on_ranks(2, largest_differences, SETTINGS, 3):
        assert max(differences) < 5e-6, differences


@pytest.mark.slow
def test_three_and_four_processes_mix_what_one_does() -> None:
    for processes in (3, 4):
        for differences in on_ranks(processes, largest_differences, SETTINGS, 2):
            assert max(differences) < 5e-6, differences
