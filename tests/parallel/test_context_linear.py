"""Linear attention over processes goes on from the sums of the pieces before it, back to where a document begins."""

from __future__ import annotations

from bench.ranks import on_ranks

from tests.parallel.shared_rows import Setting, largest_differences

SETTINGS: list[Setting] = [
    ({"attention": "linear"}, 26, False),
    ({"attention": "linear", "kv_heads": 2}, 26, True),
    ({"attention": "linear", "feature_map": "learned"}, 27, True),
]


def test_processes_mix_what_one_does() -> None:
    for differences in on_ranks(3, largest_differences, SETTINGS, 512):
        assert max(differences) < 5e-6, differences
