"""The cache follows what was seen: counts, last ids, rows kept; each layer's part is made by that layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
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


@pytest.mark.parametrize("kind", [{}, {"attention": ("window", "sparse"), "window": 4, "stride": 3, "pool": 2}])
@torch.no_grad()
def test_keys_and_values_of_8_bits_are_close_and_a_quarter_of_the_bytes(kind: dict[str, Any]) -> None:
    model, text = network(dataclasses.replace(PLAIN, **kind)), tokens(2, 12)
    exact, small = (KVCache(2, 24, torch.device("cpu"), dtype) for dtype in (torch.float32, torch.int8))
    for part in (text[:, :7], text[:, 7:8], text[:, 8:]):
        expected, reached = (model(part, cache) for cache in (exact, small))
        assert float((reached - expected).norm() / expected.norm()) < 0.02
    assert small.nbytes < 0.5 * exact.nbytes  # heads of 8 channels: a scale for each of their keys and values is half
    small.select(torch.tensor([1]))
    exact.select(torch.tensor([1]))
    reached, expected = (model(text[1:, :1], cache) for cache in (small, exact))
    assert float((reached - expected).norm() / expected.norm()) < 0.02


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
