"""First values are a function of seed, name and place alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.parallel.initial import draw_rows, initialise_by_index, normal
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Cut, Spread


@given(st.integers(0, 200), st.integers(0, 60))
def test_any_part_is_that_of_the_whole(begin: int, length: int) -> None:
    whole = normal(7, "blocks.0.ff.up.weight", 0, 300)
    assert np.array_equal(normal(7, "blocks.0.ff.up.weight", begin, begin + length), whole[begin : begin + length])


def test_values_are_normal_and_differ_by_name_and_seed() -> None:
    values = normal(0, "a", 0, 400_000)
    assert abs(values.mean()) < 4 / math.sqrt(len(values))
    assert values.std() == pytest.approx(1, abs=0.01)
    for bound, share in ((1.0, 0.31731), (2.0, 0.0455), (3.0, 0.0027)):
        assert (np.abs(values) > bound).mean() == pytest.approx(share, abs=4 * math.sqrt(share / len(values)))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01
    for other in (normal(1, "a", 0, 1000), normal(0, "b", 0, 1000)):
        assert abs(np.corrcoef(values[:1000], other)[0, 1]) < 0.15


def test_rows_and_columns_of_a_matrix() -> None:
    whole, part = torch.empty(20, 6), torch.empty(7, 3)
    draw_rows(whole, 3, "m", 6, range(20), (range(6),))
    rows = [2, 3, 4, 11, 12, 19, 0]
    draw_rows(part, 3, "m", 6, rows, (range(1), range(4, 6)))
    assert torch.equal(part, whole[rows][:, [0, 4, 5]])


def test_a_network_begins_as_the_ordinary_one_does() -> None:
    config = GPTConfig(
        vocab_size=500, context=8, layers=2, d_model=64, heads=2, kv_heads=2, d_ff=128, experts=2, ngram_rows=8
    )
    usual, model = GPT(config), GPT(config)
    usual.initialise(0, 32, 2.0)
    initialise_by_index(model, Spread(Mesh(0, 1, torch.device("cpu"))), 0, 32, 2.0)
    for (name, a), b in zip(usual.named_parameters(), model.parameters(), strict=True):
        first, own = a.detach(), b.detach()
        close = 0.05 if a.numel() > 2000 else 0.3
        assert float(own.std()) == pytest.approx(float(first.std()), rel=close, abs=1e-7), name
        assert float(own.mean()) == pytest.approx(float(first.mean()), abs=0.005), name
    experts = model.blocks[0].ff.experts
    assert torch.equal(experts[0].up.weight, experts[1].up.weight)
    part = GPT(config)
    spread = Spread(Mesh(1, 2, torch.device("cpu"), {"tensor": 2}))
    whole = model.blocks[0].attention.out.weight
    spread.enter("blocks.0.attention.out.weight", Cut("tensor", (64, 64), 1, ((range(32),), (range(32, 64),))))
    part.blocks[0].attention.out.weight = torch.nn.Parameter(torch.empty(64, 32))
    initialise_by_index(part, spread, 0, 32, 2.0)
    assert torch.equal(part.blocks[0].attention.out.weight, whole[:, 32:])
