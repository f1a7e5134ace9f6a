"""Stages give what one process gives, whatever the schedule: ragged micro-batches, tied ends, masks of documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from bench.quality.layouts import Case, change_all
from bench.ranks import on_ranks

from lmforge.errors import InputError
from lmforge.parallel import agree
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.mesh_layout import MeshLayout
from tests.parallel.passes import Work, alone, begun, check_same, laid_out, small, together

TWO = {"pipeline": 2}


def ragged_micro_batches() -> None:
    # seven micro-batches of one row, which this schedule makes eight; then three, the last of them of one row
    for schedule, size in (("interleaved", 1), ("zbv", 3), ("1f1b", 7)):
        result = together(small(), TWO, size, pipeline_schedule=schedule)
        if agree.is_main():
            check_same(result, alone(small(), size))


def both_ends_stay_equal() -> None:
    layout, model = laid_out(small(), TWO, pipeline_layers=(1, 3))
    assert [*model.blocks._modules] == (["0"] if agree.is_main() else ["1", "2", "3"])
    assert "embed.weight" in dict(model.named_parameters())  # on both: in the last stage as the head's matrix
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(2):
        layout.forward_backward(Work(step, 2), range(7))
        layout.sum_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    other = model.get_parameter("embed.weight").detach().clone()
    dist.broadcast(other, 1)
    assert torch.equal(other, model.get_parameter("embed.weight"))
    state = layout.full_state(model)
    assert state.keys() == (begun(small()).state_dict().keys() - {"head.weight"} if agree.is_main() else set())


def of_two_processes() -> None:
    ragged_micro_batches()
    both_ends_stay_equal()


def test_two_processes_give_what_one_gives() -> None:
    assert on_ranks(2, of_two_processes) == [None, None]  # what is asserted in a rank fails here too


def test_a_pipeline_goes_on_from_shared_rows_and_back(tmp_path: Path) -> None:
    cases = [
        Case("PP", TWO, "mixed", more={"pipeline_schedule": "zbv"}),
        Case("CP", {"context": 2}, "mixed"),
    ]
    pairs = on_ranks(2, change_all, cases, str(tmp_path))[0]
    assert len(pairs) == 6
    assert all(figures["same"] and figures["loss"] < 1e-5 for _, figures in pairs), pairs


@pytest.mark.slow
def test_every_layout_of_layers_and_rows_goes_on_from_every_other(tmp_path: Path) -> None:
    sizes = {"DP": {"data": 4}, "PP": {"pipeline": 4}, "PP × TP": {"pipeline": 2, "tensor": 2}, "CP": {"context": 4}}
    sizes |= {"DP × CP": {"data": 2, "context": 2}, "FSDP × CP": {"shard": 2, "context": 2}}
    pairs = on_ranks(
        4, change_all, [Case(n, size, "full", "muon") for n, size in sizes.items()], str(tmp_path), limit=900
    )[0]
    assert len(pairs) == 42
    assert all(figures["same"] and figures["loss"] < 1e-5 for _, figures in pairs), pairs


def four_with_two_axes() -> None:
    for schedule in ("interleaved", "zero-bubble"):
        sizes = {"data": 2, "pipeline": 2}
        result = together(small(experts=4, d_ff=32), sizes, 2, rows=8, pipeline_schedule=schedule)
        nats = [0.0, 0.0, 0.0, 0.0]
        dist.all_gather_object(nats, result[0])
        if agree.is_main():
            assert nats[0] == nats[2]  # all stages of a data rank know its loss
            whole = sum(nats) / 2, *result[1:]
            check_same(whole, alone(small(experts=4, d_ff=32), 2, rows=8))


@pytest.mark.slow
def test_copies_of_a_pipeline_sum_their_gradients() -> None:
    assert on_ranks(4, four_with_two_axes) == [None] * 4


@pytest.mark.parametrize(
    ("sizes", "more", "words"),
    [
        ({"pipeline": 2}, {"ahead": 1, "tied": False}, "pipeline 2: model.ahead needs .* set model.tied = true"),
        ({"pipeline": 8}, {}, "pipeline 8: 4 layers are fewer than its processes"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(
    sizes: dict[str, int], more: dict[str, object], words: str
) -> None:
    count = 1
    for size in sizes.values():
        count *= size
    layout = MeshLayout(Mesh(0, count, torch.device("cpu"), sizes))
    with pytest.raises(InputError, match=words):
        layout.apply(begun(small(**more)))
