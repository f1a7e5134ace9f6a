"""Layers are divided so that the costliest stage costs least, and a part of a network is over the same parameters."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig, LayerShape
from lmforge.model.gpt import GPT
from lmforge.model.measure import macs_per_token
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.stages import Stages, _least_worst, block_macs, divide, part_of
from lmforge.recipe.schema import Parallel

SMALL = GPTConfig(50, 16, 6, 8, 2, 2, 16)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 8))
def test_no_other_division_has_a_cheaper_worst_stage(costs: list[int], stages: int) -> None:
    stages = min(stages, len(costs))
    found = _least_worst(costs, stages)
    assert [layer for stage in found for layer in stage] == list(range(len(costs)))
    assert all(len(stage) > 0 for stage in found)
    worst = max(sum(costs[layer] for layer in stage) for stage in found)
    for cuts in itertools.combinations(range(1, len(costs)), stages - 1):
        edges = [0, *cuts, len(costs)]
        assert worst <= max(sum(costs[a:b]) for a, b in itertools.pairwise(edges))


def test_the_head_counts_and_the_recipe_overrides() -> None:
    large = dataclasses.replace(SMALL, vocab_size=5000)
    assert len(divide(large, 3)[-1]) < len(divide(SMALL, 3)[-1])
    assert divide(SMALL, 3, (1, 4, 1)) == [range(1), range(1, 5), range(5, 6)]


@pytest.mark.parametrize("counts", [(1, 5), (0, 3, 3), (2, 2, 3)])
def test_counts_that_do_not_add_up_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"parallel\.pipeline_layers.*3 numbers.*the sum 6"):
        divide(SMALL, 3, counts)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(InputError, match=r"parallel\.pipeline: 7 stages for 6 layers"):
        divide(SMALL, 7)


@pytest.mark.parametrize(
    "more",
    [
        {"kv_heads": 1, "activation": "swiglu"},
        {"attention": ("lsh",)},
        {"experts": 4, "experts_active": 2, "experts_shared": 1},
        {"layer_shapes": tuple(LayerShape(2, 1, 8 + 2 * n) for n in range(6))},
    ],
)
def test_a_layer_costs_what_its_matrices_multiply(more: dict[str, object]) -> None:
    config = dataclasses.replace(SMALL, **more)  # type: ignore[arg-type]
    model = GPT(config)
    for layer in range(6):
        assert block_macs(config, layer) == macs_per_token(model.blocks[layer])


def test_parts_one_after_another_are_the_network() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    tokens = torch.randint(50, (2, 16))
    x = tokens
    for number, layers in enumerate(divide(SMALL, 3)):
        part = part_of(model, layers, number == 0, number == 2)
        assert {*part.blocks} <= {*model.blocks}
        x = part(x)
    assert torch.equal(x, model(tokens))
    assert len(model.blocks) == 6
    assert model.embed is not None


def test_a_v_has_both_ends_on_one_process() -> None:
    def of(rank: int, **keys: object) -> Stages:
        settings = Parallel(pipeline=2, **keys)  # type: ignore[arg-type]
        return Stages(SMALL, Mesh(rank, 2, torch.device("cpu"), {"pipeline": 2}), settings)

    vee = of(0, pipeline_schedule="zbv")
    assert vee.ends_meet
    assert vee.own == [0, 3]
    assert vee.own_layers[0] == 0
    assert vee.own_layers[-1] == 5
    looped = of(1, pipeline_schedule="interleaved", pipeline_stages=3)
    assert not looped.ends_meet
    assert looped.own == [1, 3, 5]
    assert looped.process_of(4) == 0
