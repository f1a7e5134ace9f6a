"""Full attention becomes another kind: the same network but for that, nearer to the original once it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.compress.healing import Healing
from lmforge.compress.linearize import Linearize, LinearizeStep, Transfer, linearized_config, relaid
from lmforge.compress.measure import macs_per_token
from lmforge.compress.prune import Prune, PruneStep
from lmforge.errors import InputError
from tests.compress.conftest import context_of, relative, saved_and_loaded, small_model, tokens


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("linear", {"kv_heads": 4, "norm": "layernorm", "biases": True}),
        ("lsh", {"kv_heads": 4}),
        ("window", {}),
        ("strided", {}),
        ("sparse", {"experts": 4}),
    ],
)
def test_saved_and_loaded_it_is_the_same_and_a_wide_window_changes_nothing(
    tmp_path: Path, kind: str, changes: dict[str, object]
) -> None:
    model = small_model(**changes)
    keys = {"window": 32, "strided": 32, "sparse": 32}.get(kind)
    settings = LinearizeStep.model_validate(
        {"method": "linearize", "kind": kind, "transfer": None, "heal": None, **({"window": keys} if keys else {})}
        | ({"pool": 8} if kind == "sparse" else {})
    )
    result = Linearize().apply(model, settings, context_of(model, tmp_path))
    assert result.model.config.attention == (kind,)
    again = saved_and_loaded(result.model, tmp_path, result.entry)
    assert torch.equal(again(tokens()), result.model(tokens()))
    same = relative(result.model(tokens()), model(tokens())) < 1e-5
    assert same == (keys is not None)  # a window as wide as the text is full attention


def test_transfer_and_healing_bring_it_nearer_and_a_killed_transfer_goes_on(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    raw = Linearize().apply(model, LinearizeStep(transfer=None, heal=None), context)
    learned = LinearizeStep(transfer=Transfer(steps=16, rows=4), heal=None)
    moved = Linearize().apply(model, learned, context)
    assert relative(moved.model(tokens()), model(tokens())) < relative(raw.model(tokens()), model(tokens()))
    assert set(moved.details["transfer_errors"]) == {"blocks.0", "blocks.1"}
    (file,) = context.folder.glob("transfer-*.pt")
    half = torch.load(file, weights_only=True)
    assert half["step"] == 16
    again = Linearize().apply(model, learned, context)  # from what was kept
    assert torch.equal(again.model(tokens()), moved.model(tokens()))
    healed = LinearizeStep(transfer=None, heal=Healing(steps=3, rows=2))
    whole = Linearize().apply(model, healed, context)
    assert whole.details["training"]["steps"] == 3


def test_layers_are_chosen_given_back_and_counted(tmp_path: Path) -> None:
    model = small_model(context=512)
    context = context_of(model, tmp_path)
    settings = LinearizeStep(kind="window", window=8, layers=(1,), transfer=None, heal=None)
    assert Linearize().units(model, settings) == ["blocks.1"]
    result = Linearize().apply(model, settings, context)
    assert result.model.config.attention == ("full", "window")
    assert macs_per_token(model) - macs_per_token(result.model) == 2 * (256 - 8) * 64
    back = Linearize().apply(model, settings, context, ["blocks.1"])
    assert torch.equal(back.model(tokens()), model(tokens()))


def test_zeros_stay(tmp_path: Path) -> None:
    model = small_model(kv_heads=4)
    context = context_of(model, tmp_path)
    pruned = Prune().apply(model, PruneStep(kind="unstructured", share=0.5), context).model
    result = Linearize().apply(pruned, LinearizeStep(transfer=Transfer(steps=2, rows=2), heal=None), context)
    weight = result.model.get_parameter("blocks.0.attention.qkv.weight")
    assert float((weight == 0).float().mean()) >= 0.45
    assert result.entry["masked"]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    model = small_model(attention=("full", "window"), window=16)
    context = context_of(model, tmp_path)
    with pytest.raises(InputError, match="layers: 1 has no full attention; layers 0 have it"):
        Linearize().apply(model, LinearizeStep(layers=(1,)), context)
    with pytest.raises(InputError, match="window: 8 would change layer 1"):
        Linearize().apply(model, LinearizeStep(kind="window", window=8), context)
    with pytest.raises(InputError, match="no layer has it"):
        Linearize().apply(small_model(attention=("window",)), LinearizeStep(), context)
    scaled = small_model(attention_scale=0.3)
    with pytest.raises(InputError, match="attention_scale"):
        linearized_config(scaled.config, LinearizeStep(), [0])
    with pytest.raises(InputError, match="queries as keys"):
        linearized_config(model.config, LinearizeStep(kind="lsh"), [0])


def test_queries_and_keys_become_one() -> None:
    model = small_model(kv_heads=4)
    new = relaid(model, linearized_config(model.config, LinearizeStep(kind="lsh"), [0]))
    old = model.get_parameter("blocks.0.attention.qkv.weight").split(64)
    assert torch.equal(new.get_parameter("blocks.0.attention.qkv.weight"), torch.cat(((old[0] + old[1]) / 2, old[2])))
    assert torch.equal(
        new.get_parameter("blocks.1.attention.qkv.weight"), model.get_parameter("blocks.1.attention.qkv.weight")
    )
