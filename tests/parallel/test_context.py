"""A network whose rows are shared: what looks beyond one token knows where it stands in whole rows."""

from __future__ import annotations

import torch
from bench.ranks import on_ranks

from lmforge.generate.score import token_nats
from lmforge.model.cache import KVCache
from lmforge.parallel import agree
from lmforge.parallel.context import context_problems
from tests.parallel.passes import alone, begun, check_same, laid_out, rows_of, small, together

CONFIGS = [
    small(ngram_rows=20, positions="learned", layers=2),
    small(attention=("window", "full"), window=5, rope_local_base=100.0, layers=2, recompute=True, experts=4, d_ff=32),
]


def of_two_processes() -> None:
    for config in CONFIGS:
        result = together(config, {"context": 2}, 3)
        if agree.is_main():
            check_same(result, alone(config, 3))
    inputs, targets, documents = rows_of(0)
    for config in CONFIGS:
        layout, model = laid_out(config, {"context": 2})
        whole = begun(config)
        expected = token_nats(whole, inputs, targets, documents=documents)
        scores = layout.forward(lambda n, _: token_nats(n, inputs, targets, documents=documents), range(7))[0]  # type: ignore[arg-type]
        assert torch.allclose(scores, expected, atol=1e-5)  # whole rows, on both
        caches = [KVCache(7, 24, inputs.device) for _ in range(2)]
        with torch.no_grad():
            for tokens in (inputs[:, :9], inputs[:, 9:10]):
                a, b = (each(tokens, cache) for each, cache in zip((whole, model), caches, strict=True))
                assert torch.allclose(a, b, atol=1e-5)


def test_two_processes_give_what_one_gives() -> None:
    assert on_ranks(2, of_two_processes) == [None, None]  # what is asserted in a rank fails here too


def test_what_needs_whole_rows_is_refused_with_the_reason() -> None:
    assert "set model.ahead = 0" in context_problems(small(ahead=1), 2)[0]
    assert not context_problems(small(attention=("sparse", "linear"), pool=4), 2)
