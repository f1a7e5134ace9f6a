"""The planner chooses [parallel] where a recipe leaves it to it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.parallel import agree
from lmforge.plan.auto import AXES, as_accelerator, best_layout, chosen_keys, with_chosen_layout
from lmforge.plan.hardware import Hardware
from lmforge.recipe import Model, Parallel, Recipe, Tokens, Train

LAPTOP = Hardware(cores=2, memory_bytes=8 * 2**30, matrix_flops=1e11, bytes_per_second=1e10)
CARDS = Hardware(16, 2**37, "NVIDIA H200", 141 * 10**9, 8, 6e14, 4e12)
AUTO = Parallel(layout="auto")


def chosen(recipe: Recipe, processes: int, hardware: Hardware = LAPTOP) -> Parallel:
    keys = chosen_keys(recipe.parallel, best_layout(recipe, processes, hardware))
    return Parallel(**(recipe.parallel.model_dump() | keys))


def test_small_networks_are_copied_large_ones_shared() -> None:
    small = chosen(Recipe(parallel=AUTO), 4)
    assert (small.layout, small.data) == (None, 4)
    large = Recipe(
        model=Model(layers=48, d_model=8192, heads=64), tokens=Tokens(vocab_size=50_000, context=2048),
        train=Train(batch_tokens=2**20), parallel=AUTO,
    )  # fmt: skip
    found = chosen(large, 8, CARDS)
    assert found.data == 1  # it does not fit one of the cards
    assert math.prod(getattr(found, axis) for axis in AXES) == 8


def test_what_is_stated_stays_and_what_cannot_be_is_not_chosen() -> None:
    stated = Recipe(parallel=Parallel(layout="auto", tensor=2))
    assert (chosen(stated, 4).tensor, chosen(stated, 4).data) == (2, 2)
    heads = Recipe(model=Model(heads=4, kv_heads=1), parallel=AUTO, train=Train(batch_tokens=256))
    assert chosen(heads, 2).tensor == 1  # one head of keys is not shared, and there is one row to share
    with pytest.raises(InputError, match=r"parallel.layout auto.*tensor = 3"):
        chosen(Recipe(parallel=Parallel(layout="auto", tensor=3)), 4)


def test_every_rank_takes_what_rank_0_chose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Recipe()
    assert with_chosen_layout(plain) is plain
    monkeypatch.setattr("lmforge.plan.auto.detect", lambda: LAPTOP)
    monkeypatch.setattr(agree, "on_main", lambda work: work() | {"shard": 2, "data": 1})
    monkeypatch.setattr(agree, "world", lambda: 2)
    found = with_chosen_layout(Recipe(parallel=AUTO)).parallel
    assert (found.layout, found.shard, found.data) == (None, 2, 1)
    assert "parallel.layout auto" in capsys.readouterr().err


def test_processes_of_one_machine_share_it() -> None:
    one, two = as_accelerator(LAPTOP, 1), as_accelerator(LAPTOP, 2)
    assert (two.flops, two.memory_bytes) == (one.flops / 2, one.memory_bytes / 2)
    card = as_accelerator(CARDS, 8)
    assert card.memory_bytes == 141 * 10**9
    assert card.flops * card.sustained == pytest.approx(6e14)  # what was measured
    assert card.fast_link == 450e9  # of the table


def test_training_by_itself_chooses(tiny_run: Path, tmp_path: Path) -> None:
    from lmforge.train.loop import train
    from tests.train.runs import recipe_of

    recipe = recipe_of(tiny_run, steps=2)
    recipe = recipe.model_copy(update={"parallel": AUTO})
    assert train(recipe, tiny_run / "tokens", tmp_path / "train", tmp_path / "model")["steps"] == 2
