"""The cache follows what was seen: counts, last ids, rows kept; each layer's part is made by that layer."""

from __future__ import annotations

import torch

from lmforge.model.cache import KVCache
from tests.model.test_gpt import PLAIN, network, tokens


def test_counts_and_last_ids_leave_padding_out() -> None:
    cache = KVCache(2, 10, torch.device("cpu"))
    cache.advance(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([3, 1]))
    assert cache.lengths.tolist() == [3, 1]
    assert cache.recent.tolist() == [[6, 7], [0, 8]]
    cache.advance(None, torch.tensor([1, 1]))  # a stage that does not see ids
    assert cache.lengths.tolist() == [4, 2]
    assert cache.recent.tolist() == [[6, 7], [0, 8]]


def test_layers_make_their_parts_when_they_run_and_rows_are_kept_in_order() -> None:
    model, cache = network(PLAIN), KVCache(3, 24, torch.device("cpu"), torch.float64)
    assert cache.nbytes == 0
    with torch.no_grad():
        model.double()(tokens(3, 5), cache)
    assert sorted(cache.layers) == [0, 1]
    assert cache.nbytes == 2 * (2 * 3 * 2 * 25 * 8) * 8  # layers · (keys and values, rows, heads, slots, width) · bytes
    before = [layer.store.clone() for layer in cache.layers.values()]  # type: ignore[attr-defined]
    cache.select(torch.tensor([2, 0]))
    for layer, store in zip(cache.layers.values(), before, strict=True):
        assert torch.equal(layer.store, store[:, [2, 0]])  # type: ignore[attr-defined]
