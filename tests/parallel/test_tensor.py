"""Declarations of modules over the tensor axis (values and gradients: test_mesh_layout.py)."""

from __future__ import annotations

from itertools import chain

import pytest

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.parallel.tensor import PLANS, Plan

NARROW = {"vocab_size": 41, "context": 16, "layers": 1, "d_model": 32}
SHAPE = NARROW | {"heads": 6, "kv_heads": 3, "d_ff": 50, "head_dim": 4}


def plan_of(module: object, size: int) -> Plan:
    return PLANS[type(module)](module, size)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("attention", ["full", "linear", "sparse"])
def test_every_row_lies_on_exactly_one_process(size: int, activation: str, attention: str) -> None:
    model = GPT(GPTConfig(**SHAPE, activation=activation, attention=attention, pool=4, window=8))
    block = model.blocks[0]
    for module in (block.attention, block.ff, model.embed):
        for name, (dim, parts) in plan_of(module, size).cut.items():
            owner, _, last = name.rpartition(".")
            try:
                parameter = getattr(module.get_submodule(owner), last)
            except AttributeError:
                continue
            if parameter is not None:
                assert len(parts) == size
                assert sorted(chain(*chain(*parts))) == [*range(parameter.shape[dim])], name


def test_heads_keep_the_keys_that_they_share() -> None:
    block = GPT(GPTConfig(**SHAPE)).blocks[0]
    (_, parts), groups = plan_of(block.attention, 3).cut["qkv.weight"], block.attention.groups
    for process, (queries, keys, values) in enumerate(parts):
        assert queries == range(process * groups * 4, (process + 1) * groups * 4)
        assert keys == range(24 + process * 4, 28 + process * 4)
        assert values == range(36 + process * 4, 40 + process * 4)


def test_gated_units_keep_both_halves() -> None:
    block = GPT(GPTConfig(**SHAPE, activation="swiglu")).blocks[0]
    plan = plan_of(block.ff, 2)
    assert plan.cut["up.weight"][1] == [(range(25), range(50, 75)), (range(25, 50), range(75, 100))]
    assert plan.cut["down.weight"] == (1, [(range(25),), (range(25, 50),)])
