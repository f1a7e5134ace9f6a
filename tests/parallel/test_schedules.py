"""Schedules by name, and gradients of matrices that are put off."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.parallel.schedules import KINDS, PutOff, micro_batches_of, stages_of


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 9))
def test_every_stage_has_one_process(name: str, ranks: int) -> None:
    stages = stages_of(name, ranks)
    assert sorted(stage for own in stages for stage in own) == list(range(ranks * KINDS[name].stages))


@given(st.sampled_from(sorted(KINDS)), st.integers(2, 6), st.integers(1, 40))
def test_micro_batches_are_made_up_to_what_a_schedule_takes(name: str, ranks: int, count: int) -> None:
    made = micro_batches_of(name, ranks, count)
    assert made >= count
    if name in ("interleaved", "zero-bubble"):
        assert made % max(1, made // ranks) == 0
        assert made == count or count % max(1, count // ranks)
    elif name == "1f1b":
        assert made == max(count, ranks)
    else:
        assert made == count


def test_stages_that_a_schedule_does_not_take_are_refused() -> None:
    assert stages_of("interleaved", 2, 3) == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(InputError, match=r"pipeline_stages: 1f1b has 1 a process, not 2"):
        stages_of("1f1b", 2, 2)
    with pytest.raises(InputError, match=r"pipeline_stages: zbv has 2 a process, not 1"):
        stages_of("zbv", 2, 1)
    with pytest.raises(InputError, match=r"pipeline_schedule: 'dapple' is not known; there are gpipe"):
        stages_of("dapple", 2)


@pytest.mark.parametrize("half", [False, True])
def test_gradients_put_off_are_those_at_once(half: bool) -> None:
    torch.manual_seed(0)
    plain = GPT(GPTConfig(30, 12, 2, 16, 2, 2, 24, activation="swiglu", biases=True))
    plain.initialise(0)
    late, put_off = copy.deepcopy(plain), PutOff()
    put_off.take_over(list(late.blocks))
    tokens = torch.randint(30, (2, 12))
    for model in (plain, late):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(tokens, tokens)
        loss.backward()
    matrices = [module.weight for module in late.blocks.modules() if isinstance(module, nn.Linear)]
    assert len(put_off.noted) == len(matrices)
    assert all(weight.grad is None for weight in matrices)
    first, second = put_off.builder(), put_off.builder()
    second()  # nothing was noted in between
    assert all(weight.grad is None for weight in matrices)
    first()
    for (name, mine), expected in zip(late.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert expected.grad is not None
        assert torch.allclose(mine.grad, expected.grad, rtol=1e-5, atol=1e-6), name


def test_modules_that_something_follows_keep_their_gradients() -> None:
    layer, put_off = nn.Linear(3, 3), PutOff()
    layer.register_forward_hook(lambda *_: None)
    put_off.take_over([layer])
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad is not None
    assert not put_off.noted
