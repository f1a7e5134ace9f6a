"""Hash buckets reach over whole rows: each process takes some heads of all of them."""

from __future__ import annotations

from bench.ranks import on_ranks

from lmforge.model.config import GPTConfig
from lmforge.parallel.context import context_problems
from tests.parallel.shared_rows import Setting, largest_differences

LSH = {"attention": "lsh", "lsh_span": 4, "lsh_rounds": 2}
SETTINGS: list[Setting] = [(LSH, 26, False), (LSH, 27, True)]


def test_processes_mix_what_one_does() -> None:
    for differences in on_ranks(2, largest_differences, SETTINGS, 512):
        assert max(differences) < 5e-6, differences


def test_heads_that_do_not_divide_are_refused_with_what_to_do() -> None:
    config = GPTConfig(30, 24, 1, 12, 3, 3, 8, **LSH)  # type: ignore[arg-type]
    assert "heads, and [3] do not divide; take a number of heads that 2 divides" in context_problems(config, 2)[0]
    assert not context_problems(config, 3)
    assert context_problems(config, 3, tensor=2)
