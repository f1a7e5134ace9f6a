"""What is pruned is gone, stays gone, and the rest is the most important of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.compress.healing import Healing
from lmforge.compress.importance import mean_nats, measured, weight_scores
from lmforge.compress.masks import MaskedLinear, masked
from lmforge.compress.measure import macs_per_token, module_macs
from lmforge.compress.prune import Prune, PruneStep, cubic, layer_names
from lmforge.errors import InputError
from lmforge.model.gpt import GPT, LayerShape
from lmforge.recipe import parse_recipe
from tests.compress.conftest import context_of, rows, saved_and_loaded, small_model, tokens


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


def test_the_least_by_the_chosen_importance_go(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    scores = measured(model, context.calibration)
    for kind in ("magnitude", "activation", "taylor"):
        result = Prune().apply(model, PruneStep(share=0.6, importance=kind), context).model  # type: ignore[arg-type]
        for name in layer_names(model):
            score = weight_scores(model, name, kind, scores)
            mask = result.get_submodule(name).mask
            assert score[mask].min() >= score[~mask].max()


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


STRUCTURED = [
    ({}, {"units": 0.5}),
    ({}, {"heads": 0.5, "units": 0.25, "scope": "global"}),
    ({"activation": "swiglu", "biases": True, "norm": "layernorm"}, {"heads": 0.5, "units": 0.5}),
    ({"layers": 4}, {"layers": 0.5, "units": 0.5}),
    ({"experts": 4}, {"experts": 0.5, "units": 0.5}),
    ({"experts": 4}, {"experts": 0.25, "scope": "global", "units": 0.5}),
]


@pytest.mark.parametrize(("changes", "shares"), STRUCTURED, ids=str)
def test_whole_parts_are_gone_and_so_are_their_multiplications(
    tmp_path: Path, changes: dict[str, object], shares: dict[str, object]
) -> None:
    model = small_model(**changes)
    step = PruneStep(kind="structured", rounds=2, **shares)  # type: ignore[arg-type]
    result = Prune().apply(model, step, context_of(model, tmp_path))
    config = result.model.config
    shapes = [config.shape_of(layer) for layer in range(config.layers)]
    old = model.config
    if "layers" in shares:
        assert config.layers == 2
    if "experts" in shares:
        assert sum(shape.experts for shape in shapes) == (4 if shares["experts"] == 0.5 else 6)
    elif "scope" not in shares:
        assert all(shape.d_ff == old.d_ff * (1 - step.units) for shape in shapes)
        assert all(shape.kv_heads == old.kv_heads * (1 - step.heads) for shape in shapes)
        one = module_macs(model.blocks[0].ff) / old.d_ff  # type: ignore[arg-type]
        assert module_macs(result.model.blocks[0].ff) == one * shapes[0].d_ff  # type: ignore[arg-type]
    else:
        assert sum(shape.d_ff for shape in shapes) == 2 * old.d_ff * (1 - step.units)
        assert sum(shape.kv_heads for shape in shapes) == 2
    assert macs_per_token(result.model) < macs_per_token(model)
    assert result.fresh
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert again.config == config
    assert torch.equal(again(tokens()), result.model(tokens()))


def test_the_layer_that_does_nothing_goes_first_and_units_that_do_nothing(tmp_path: Path) -> None:
    model = small_model(layers=4)
    with torch.no_grad():
        model.blocks[2].attention.out.weight.zero_()  # type: ignore[union-attr]
        model.blocks[2].ff.down.weight.zero_()  # type: ignore[union-attr]
    with torch.no_grad():  # rows whose targets the network gives, so that to lose a layer costs
        own = dataclasses.replace(rows(), targets=model(rows().inputs).argmax(-1))
    context = dataclasses.replace(context_of(model, tmp_path), calibration=[own])
    result = Prune().apply(model, PruneStep(kind="structured", layers=0.25), context)
    assert torch.allclose(result.model(tokens()), model(tokens()), atol=1e-5)
    assert min(result.details["rounds"][0]["nats_without_layer"]) == pytest.approx(0, abs=1e-5)
    quiet = small_model()
    with torch.no_grad():
        for block in quiet.blocks:
            block.ff.down.weight[:, ::2] = 0  # type: ignore[union-attr]
    halved = Prune().apply(quiet, PruneStep(kind="structured", units=0.5), context_of(quiet, tmp_path)).model
    assert torch.allclose(halved(tokens()), quiet(tokens()), atol=1e-4)


def test_layers_kept_stay_whole_and_are_given_back_after_healing(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    step = PruneStep(kind="structured", units=0.5, heal=Healing(steps=2, rows=2))
    assert Prune().units(model, step) == ["blocks.0", "blocks.1"]
    kept = Prune().apply(model, step, context, ["blocks.1"]).model.config
    assert [kept.shape_of(layer).d_ff for layer in range(2)] == [64, 128]
    result = Prune().apply(model, step, context)
    back = Prune().give_back(model, result, ["blocks.0"], step, context)
    assert back.model.config.shape_of(0) == LayerShape(4, 2, 128)
    assert torch.equal(back.model.blocks[0].ff.up.weight, model.blocks[0].ff.up.weight)  # type: ignore[union-attr]
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


def test_mean_nats_counts_what_the_loss_counts() -> None:
    model, batch = small_model(), rows(3)
    loss = model.loss(batch.inputs, batch.targets) / int(batch.counts.sum())
    assert mean_nats(model, [batch]) == pytest.approx(float(loss.detach()), rel=1e-5)
