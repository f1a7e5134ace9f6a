"""Every layout equals one process: loss and every gradient over three steps, checkpoints under any other layout."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import pytest
from bench.quality import layouts
from bench.ranks import on_ranks

from lmforge.errors import InputError
from lmforge.parallel.layout import join_layout, layout_name
from lmforge.parallel.mesh_layout import MeshLayout
from lmforge.recipe import Recipe
from lmforge.recipe.schema import Parallel

LIMIT = 1e-5


def test_layouts_equal_one_process(four: list[dict[str, Any]]) -> None:
    assert len(four[0]["equal"]) == 4
    for row, figures in four[0]["equal"]:
        assert figures["loss"] < LIMIT, row
        assert figures["gradient"] < LIMIT, row


def test_a_checkpoint_is_gone_on_from_under_another_layout(four: list[dict[str, Any]]) -> None:
    assert len(four[0]["changes"]) == 6
    for pair, figures in four[0]["changes"]:
        assert figures["same"], pair
        assert figures["loss"] < LIMIT, pair


def test_a_module_that_declares_nothing_is_named(four: list[dict[str, Any]]) -> None:
    assert {each["refused"] for each in four} == {four[0]["refused"]}
    assert "parallel.tensor: Linear (blocks.0.more) does not declare how its weight lies" in four[0]["refused"]


def test_one_process_is_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    case = layouts.Case("one", {}, "full", more={"layout": "mesh"})
    layout = join_layout(Parallel(layout="mesh"))
    assert isinstance(layout, MeshLayout)
    assert (layout.data_rank, layout.data_size, layout.shares_network) == (0, 1, False)
    figures = layouts.differences(layouts.Run(case, layout.mesh).result(), layouts.one_process(case))
    assert figures["loss"] < 1e-6
    assert figures["gradient"] < LIMIT


def test_axes_choose_the_layout() -> None:
    assert layout_name(Parallel()) == "data-parallel"
    assert layout_name(Parallel(data=3)) == "data-parallel"
    assert layout_name(Parallel(tensor=2)) == "mesh"
    with pytest.raises(InputError, match=r"parallel\.layout: 'data-parallel' knows no shard, tensor"):
        layout_name(Parallel(layout="data-parallel", shard=2, tensor=2))


def test_all_that_cannot_be_trained_is_told_at_once() -> None:
    from lmforge.parallel.mesh import Mesh

    layout = MeshLayout(Mesh.__new__(Mesh), Parallel())
    layout.mesh.sizes = {"data": 1, "shard": 3, "tensor": 4, "pipeline": 1, "expert": 1, "context": 1}
    recipe = Recipe(
        tokens={"context": 30}, train={"optimizer_state": "8bit", "compile": "on", "context_schedule": [[0.0, 15]]}
    )
    with pytest.raises(InputError) as told:
        layout.check(recipe, [16, 9])
    for reason in (
        "shard 3 × tensor 4: batches of 16 rows do not divide over the 3 processes",
        "tensor 4: rows of 15, 30 tokens do not divide over it",
        "train.optimizer_state '8bit'",
        "train.compile 'on'",
    ):
        assert reason in str(told.value)
    layout.check(Recipe(), [12])


@pytest.mark.slow
@pytest.mark.parametrize("world", sorted({case.processes for case in layouts.CASES}))
def test_every_layout_of_the_table_equals_one_process(world: int) -> None:
    cases = [case for case in layouts.CASES if case.processes == world]
    # undoing blocks rounds in another order, and so do sums over long rows
    exact = [case for case in cases if case.network.startswith(("reversible", "long"))]
    usual = [case for case in cases if case not in exact]
    rows = on_ranks(world, layouts.compare_all, usual, "float32", True, limit=1800)[0]
    if exact:
        rows += on_ranks(world, layouts.compare_all, exact, "float64", True, limit=1800)[0]
    assert len(rows) == len(cases)
    for case, figures in rows:
        assert figures["loss"] < LIMIT, case.row
        assert figures["gradient"] < LIMIT, case.row


@pytest.mark.slow
@pytest.mark.parametrize("cases", [layouts.CHANGES, layouts.CHANGES_OF_STAGES])
def test_every_layout_goes_on_from_every_other(cases: list[layouts.Case]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = on_ranks(4, layouts.change_all, cases, folder, limit=900)[0]
    assert len(rows) == len(cases) * (len(cases) + 1)
    assert all(figures["same"] and figures["loss"] < LIMIT for _, figures in rows), rows


@pytest.mark.slow
def test_weights_may_travel_in_bfloat16() -> None:
    case = layouts.Case("FSDP", layouts.FSDP, "full", more={"gather": "bf16"})
    rows = on_ranks(4, layouts.compare_all, [case, dataclasses.replace(case, more={})], "float32", True)[0]
    assert LIMIT < rows[0][1]["gradient"] < 0.05
    assert rows[1][1]["gradient"] < LIMIT
