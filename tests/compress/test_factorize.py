"""Two thin matrices: exact at full rank, best at any, within the numbers that were allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.compress.calibration import input_grams
from lmforge.compress.factorize import Factorize, FactorizeStep, Factors, factors, places, share_ranks, with_ranks
from lmforge.compress.healing import Healing
from lmforge.compress.importance import divergence
from lmforge.compress.measure import macs_per_token
from lmforge.compress.prune import Prune, PruneStep
from lmforge.errors import InputError
from lmforge.model.low_rank import LowRankLinear
from tests.compress.conftest import context_of, relative, rows, saved_and_loaded, small_model, tokens


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_full_rank_is_the_matrix(outputs: int, inputs: int, seed: int, seen: bool) -> None:
    torch.manual_seed(seed)
    weight, x = torch.randn(outputs, inputs), torch.randn(40, inputs) * torch.rand(inputs).add(0.1)
    left, right, _ = factors(weight, x.t() @ x if seen else None)
    assert relative(left @ right, weight) < 1e-5


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 7), st.integers(0, 99))
def test_the_error_is_that_of_the_outputs_and_less_than_plain_svd(rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    weight, x = torch.randn(10, 8), torch.randn(60, 8) @ torch.diag(torch.tensor([10.0, 5, 3, 1, 1, 0.5, 0.2, 0.1]))
    left, right, energy = factors(weight, x.t() @ x)
    error = float((x @ (left[:, :rank] @ right[:rank] - weight).t()).square().sum())
    assert error == pytest.approx(float(energy[rank:].sum()), rel=1e-2, abs=1e-3)
    plain_left, plain_right, _ = factors(weight, None)
    plain = float((x @ (plain_left[:, :rank] @ plain_right[:rank] - weight).t()).square().sum())
    assert error <= plain * 1.001


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation": "swiglu", "biases": True, "norm": "layernorm"}, {"experts": 4, "experts_shared": 1}],
    ids=str,
)
def test_a_model_at_full_rank_and_at_a_ratio(tmp_path: Path, changes: dict[str, object]) -> None:
    model = small_model(**changes)
    context = context_of(model, tmp_path)
    grams = input_grams(model, context.calibration)
    made = {}
    for place, names in places(model, ("attention.qkv", "attention.out", "ff.up", "ff.down")).items():
        each = [factors(model.get_parameter(f"{name}.weight").detach(), grams.get(name)) for name in names]
        made[place] = Factors(tuple(names), *zip(*each, strict=True))
    whole = with_ranks(model, made, {place: each.most for place, each in made.items()})
    assert relative(whole(tokens()), model(tokens())) < 1e-5
    assert isinstance(whole.blocks[0].attention.qkv, LowRankLinear)  # type: ignore[union-attr]
    result = Factorize().apply(model, FactorizeStep(ratio=3), context)
    assert result.details["ratio"] >= 3
    kept = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    left = sum(p.numel() for p in result.model.blocks.parameters() if p.ndim == 2)
    assert left < 0.4 * kept
    assert macs_per_token(result.model) < macs_per_token(model)
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))


def test_ranks_go_where_they_save_most_and_no_further_than_allowed() -> None:
    steep = Factors(("a",), (torch.zeros(8, 8),), (torch.zeros(8, 8),), (torch.tensor([9.0, 1, 0, 0, 0, 0, 0, 0]),))
    flat = Factors(("b",), (torch.zeros(8, 8),), (torch.zeros(8, 8),), (torch.full((8,), 4.0),))
    ranks = share_ranks({"a": steep, "b": flat}, {"a": 1.0, "b": 1.0}, 16 * 4)
    assert ranks == {"a": 1, "b": 3}
    assert share_ranks({"a": steep, "b": flat}, {"a": 100.0, "b": 1.0}, 16 * 4) == {"a": 2, "b": 2}
    assert share_ranks({"b": flat}, {"b": 1.0}, 64) == {"b": 0}  # a pair of rank 4 is no smaller than the matrix


def test_healed_is_nearer_and_matrices_are_given_back(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    step = FactorizeStep(ratio=4, heal=Healing(steps=40, rows=4, peak_lr=2e-3))
    healed = Factorize().apply(model, step, context)
    plain = Factorize().apply(model, FactorizeStep(ratio=4), context)
    fresh = [rows(6, 24, 999)]
    assert divergence(model, healed.model, fresh) < divergence(model, plain.model, fresh)
    assert list(healed.details["nats_alone"].values()) == sorted(healed.details["nats_alone"].values(), reverse=True)
    every = Factorize().units(model, step)
    back = Factorize().give_back(model, plain, every, step, context)
    assert torch.equal(back.model(tokens()), model(tokens()))
    one = Factorize().give_back(model, healed, ["blocks.1.ff.up"], step, context)
    assert torch.equal(one.model.blocks[1].ff.up.weight, model.blocks[1].ff.up.weight)  # type: ignore[union-attr]
    assert torch.equal(saved_and_loaded(one.model, tmp_path, one.entry)(tokens()), one.model(tokens()))


def test_what_cannot_be_is_refused_and_masks_of_other_matrices_stay(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    with pytest.raises(InputError, match=r"ratio: 100 leaves less than rank 1; at most \d"):
        Factorize().apply(model, FactorizeStep(ratio=100), context)
    pruned = Prune().apply(model, PruneStep(share=0.5), context).model
    thin = Factorize().apply(pruned, FactorizeStep(matrices=("ff.up", "ff.down"), ratio=2), context)
    assert set(thin.entry["masked"]) == {f"blocks.{n}.attention.{part}" for n in range(2) for part in ("qkv", "out")}
    assert torch.equal(saved_and_loaded(thin.model, tmp_path, thin.entry)(tokens()), thin.model(tokens()))
    with pytest.raises(InputError, match="two thin ones already"):
        Factorize().apply(thin.model, FactorizeStep(matrices=("ff.up", "ff.down")), context)
