"""Grouped modules: the head shares the table, few rows are those of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.compress.grouped import GroupedEmbedding, GroupedLinear, TiedGroupedHead
from lmforge.compress.groups import round_groups
from lmforge.compress.quantize import Quantize
from lmforge.kernels.build import library
from lmforge.recipe import QuantizeStep
from tests.compress.conftest import context_of, relative, small_model


def test_the_tied_head_shares_the_table(tmp_path: Path) -> None:
    model = small_model()
    result = Quantize().apply(model, QuantizeStep(kind="weights", bits=4), context_of(model, tmp_path)).model
    assert isinstance(result.embed, GroupedEmbedding)
    assert isinstance(result.head, TiedGroupedHead)
    assert sum(name.startswith("head") for name in result.state_dict()) == 0
    x = torch.randn(3, 64)
    assert relative(result.head(x), x @ result.embed.dense().t()) < 0.01


def test_rows_are_the_same_wherever_they_are_made() -> None:
    weight = torch.randn(30, 48)
    tables = {unpack: GroupedEmbedding(30, 48, 5, 16, unpack=unpack) for unpack in ("load", "fly", "kernel")}
    for table in tables.values():
        table.fill(round_groups(weight, 5, 16))
    tokens_ = torch.tensor([[3, 29], [0, 3]])
    kept, fly, kernel = tables.values()
    for table in (fly, kernel):
        assert torch.equal(kept(tokens_), table(tokens_))
        assert torch.equal(kept.dense(), table.dense())
    assert torch.equal(kept(tokens_), kept.dense()[tokens_])
    assert kept.weight_bytes() - fly.weight_bytes() == 4 * weight.numel()
    if library() is not None:  # in panels of 16 rows, and nowhere else
        assert kernel.unregistered_bytes() == 32 * (5 * 48 // 8 + 3 * 3)
        assert kernel.weight_bytes() == kernel.unregistered_bytes()
    state = kernel.state_dict()
    assert all(torch.equal(part, state[name]) for name, part in fly.state_dict().items())
    again = GroupedEmbedding(30, 48, 5, 16, unpack="kernel")
    again.load_state_dict(state)
    again.load_state_dict(state)  # over what is laid out already
    assert torch.equal(again.dense(), kept.dense())


@pytest.mark.parametrize("offset", ["zero", "least", 8])
def test_offsets_of_each_kind(offset: str | int) -> None:
    layer, dense = (GroupedLinear(24, 40, True, 4, 16, unpack=each, offset=offset) for each in ("kernel", "load"))
    generator = torch.Generator().manual_seed(0)
    state = {"codes": torch.randint(256, (24, 20), dtype=torch.uint8, generator=generator), "bias": torch.ones(24)}
    state["scale"] = torch.rand(24, 3, generator=generator).half()
    if offset == "zero":
        state["zero"] = torch.randint(16, (24, 3), dtype=torch.uint8, generator=generator)
    elif offset == "least":
        state["least"] = -torch.rand(24, 3, generator=generator).half()
    for each in (layer, dense):
        each.load_state_dict(state)
    x = torch.randn(5, 40, generator=generator)
    assert torch.equal(layer.dense(), dense.dense())
    assert relative(layer(x), dense(x)) < 0.02
    assert all(torch.equal(layer.state_dict()[name], part) for name, part in state.items())


def test_without_kernels_it_is_the_dense_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMFORGE_KERNELS", "off")
    layer = GroupedLinear(8, 16, bias=False, bits=4, group=16, unpack="kernel")
    layer.fill(round_groups(torch.randn(8, 16), 4, 16))
    x = torch.randn(2, 16)
    assert layer.packed is None
    assert torch.equal(layer(x), x @ layer.dense().t())


def test_a_layer_that_is_filled_again_gives_the_new_weights() -> None:
    layer = GroupedLinear(8, 16, bias=True, bits=4, group=8)
    first, second = torch.randn(8, 16), torch.randn(8, 16)
    x = torch.randn(2, 16)
    layer.fill(round_groups(first, 4, 8))
    before = layer(x)
    layer.fill(round_groups(second, 4, 8))
    assert not torch.equal(layer(x), before)
    assert torch.allclose(layer(x), x @ round_groups(second, 4, 8).dense(8).t(), atol=1e-5)
