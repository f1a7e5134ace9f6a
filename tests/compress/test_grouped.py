"""Grouped modules: the head shares the table, few rows are those of the whole."""

from __future__ import annotations

from pathlib import Path

import torch

from lmforge.compress.grouped import GroupedEmbedding, GroupedLinear, TiedGroupedHead
from lmforge.compress.groups import round_groups
from lmforge.compress.quantize import Quantize
from lmforge.recipe import QuantizeStep
from tests.compress.conftest import context_of, small_model


def test_the_tied_head_shares_the_table(tmp_path: Path) -> None:
    model = small_model()
    result = Quantize().apply(model, QuantizeStep(kind="weights", bits=4), context_of(model, tmp_path)).model
    assert isinstance(result.embed, GroupedEmbedding)
    assert isinstance(result.head, TiedGroupedHead)
    assert sum(name.startswith("head") for name in result.state_dict()) == 0
    x = torch.randn(3, 64)
    assert torch.allclose(result.head(x), x @ result.embed.dense().t(), atol=1e-5)


def test_rows_made_in_each_product_are_those_kept() -> None:
    weight = torch.randn(30, 20)
    kept, fly = (GroupedEmbedding(30, 20, 5, 8, fly=each) for each in (False, True))
    for table in (kept, fly):
        table.fill(round_groups(weight, 5, 8))
    tokens_ = torch.tensor([[3, 29], [0, 3]])
    assert torch.equal(kept(tokens_), fly(tokens_))
    assert torch.equal(kept(tokens_), kept.dense()[tokens_])
    assert kept.unregistered_bytes() == 4 * weight.numel()
    assert fly.unregistered_bytes() == 0
    assert kept.weight_bytes() - fly.weight_bytes() == 4 * weight.numel()


def test_a_layer_that_is_filled_again_gives_the_new_weights() -> None:
    layer = GroupedLinear(8, 16, bias=True, bits=4, group=8)
    first, second = torch.randn(8, 16), torch.randn(8, 16)
    x = torch.randn(2, 16)
    layer.fill(round_groups(first, 4, 8))
    before = layer(x)
    layer.fill(round_groups(second, 4, 8))
    assert not torch.equal(layer(x), before)
    assert torch.allclose(layer(x), x @ round_groups(second, 4, 8).dense(8).t(), atol=1e-5)
