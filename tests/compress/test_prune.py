"""What is pruned is gone, stays gone, and the rest is the most important of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.compress.healing import Healing
from lmforge.compress.masks import MaskedLinear, masked
from lmforge.compress.prune import Prune, PruneStep, cubic
from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.recipe import parse_recipe
from tests.compress.conftest import context_of, saved_and_loaded, small_model, tokens


def test_the_cubic_schedule_ends_at_the_share() -> None:
    assert cubic(0.8, 4, 4) == pytest.approx(0.8)
    assert cubic(0.8, 1, 4) == pytest.approx(0.8 * (1 - 0.75**3))


@settings(deadline=None, max_examples=10)
@given(
    st.floats(0.05, 0.95), st.sampled_from(["layer", "global"]), st.sampled_from(["magnitude", "activation", "taylor"])
)
def test_a_share_of_the_weights_is_zero_and_comes_back_from_disk(
    tmp_path_factory: pytest.TempPathFactory, share: float, scope: str, importance: str
) -> None:
    folder = tmp_path_factory.mktemp("pruned")
    model = small_model()
    step = PruneStep(share=share, scope=scope, importance=importance)  # type: ignore[arg-type]
    result = Prune().apply(model, step, context_of(model, folder))
    sparsity = result.details["sparsity"]
    assert sparsity["blocks"] == pytest.approx(share, abs=1e-3)
    if scope == "layer":
        assert all(value == pytest.approx(share, abs=1e-2) for value in sparsity.values())
    again = saved_and_loaded(result.model, folder, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))
    for name in masked(result.model):
        weight = again.get_parameter(f"{name}.weight")
        assert torch.equal(weight == 0, ~again.get_submodule(name).mask)  # type: ignore[arg-type]


def test_two_of_four_in_every_row(tmp_path: Path) -> None:
    model = small_model()
    result = Prune().apply(model, PruneStep(kind="2:4"), context_of(model, tmp_path))
    for name in masked(result.model):
        assert result.model.get_submodule(name).mask.view(-1, 4).sum(1).eq(2).all()  # type: ignore[union-attr,operator]
    assert torch.equal(saved_and_loaded(result.model, tmp_path, result.entry)(tokens()), result.model(tokens()))
    uneven = small_model(d_ff=130)
    with pytest.raises(InputError, match="no multiple of 4 long"):
        Prune().apply(uneven, PruneStep(kind="2:4"), context_of(uneven, tmp_path))


@pytest.mark.parametrize("rewind", ["rate", "weights"])
def test_rounds_with_healing_beat_one_cut_without(tmp_path: Path, rewind: str) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    step = PruneStep(share=0.7, rounds=3, rewind=rewind, heal=Healing(steps=15, rows=4, peak_lr=3e-3))  # type: ignore[arg-type]
    healed = Prune().apply(model, step, context)
    cut = Prune().apply(model, PruneStep(share=0.7), context)
    shares = [entry["share"] for entry in healed.details["rounds"]]
    assert shares == [pytest.approx(cubic(0.7, number, 3)) for number in (1, 2, 3)]
    assert healed.details["sparsity"]["blocks"] == pytest.approx(0.7, abs=1e-3)

    def far(pruned: GPT) -> float:
        return float((model(tokens()).log_softmax(-1) - pruned(tokens()).log_softmax(-1)).square().mean())

    with torch.no_grad():
        assert far(healed.model) < far(cut.model)
    back = Prune().give_back(model, healed, ["blocks.0.ff.up"], step, context)
    assert not isinstance(back.model.get_submodule("blocks.0.ff.up"), MaskedLinear)
    assert torch.equal(saved_and_loaded(back.model, tmp_path, back.entry)(tokens()), back.model(tokens()))


def test_pruned_twice_and_then_cut(tmp_path: Path) -> None:
    """Masks of a step before go with what is cut; the entries before describe the network no more."""
    model = small_model()
    context = context_of(model, tmp_path)
    first = Prune().apply(model, PruneStep(share=0.3), context)
    second = Prune().apply(first.model, PruneStep(share=0.6), context)
    name = "blocks.0.ff.up"
    masks = [step.model.get_submodule(name).mask for step in (first, second)]
    assert not (masks[1] & ~masks[0]).any()  # type: ignore[operator]
    third = Prune().apply(second.model, PruneStep(kind="structured", units=0.5), context)
    assert third.entry["masked"]
    entries = [{**first.entry, "superseded": True}, {**second.entry, "superseded": True}, third.entry]
    assert torch.equal(saved_and_loaded(third.model, tmp_path, *entries)(tokens()), third.model(tokens()))


def test_settings_that_do_not_fit_are_refused() -> None:
    for wrong, words in (
        ({"kind": "structured"}, "at least one"),
        ({"kind": "structured", "units": 0.5, "share": 0.5}, "not share"),
        ({"units": 0.5}, "are of kind = 'structured'"),
        ({"kind": "2:4", "share": 0.7}, "half of the weights"),
        ({"share": 1.0}, "leaves nothing"),
    ):
        with pytest.raises(InputError, match=words):
            parse_recipe({"compress": {"steps": [{"method": "prune", **wrong}]}})
