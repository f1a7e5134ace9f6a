"""What modules say of themselves adds up to what the network holds and does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.measure import macs_per_token, weight_bytes
from tests.model.test_gpt import DIFFERENT, PLAIN
from tests.model.test_lsh import shape

MATRICES = (torch.ops.aten.mm, torch.ops.aten.addmm)


class Packed(nn.Module):
    """Knows better than its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(100, 100)

    def weight_bytes(self) -> int:
        return 5

    def macs_per_token(self) -> int:
        return 7


@pytest.mark.parametrize("config", [PLAIN, dataclasses.replace(PLAIN, tied=False, biases=True), *DIFFERENT])
def test_the_parts_add_up(config: GPTConfig) -> None:
    model = GPT(config)
    kept = sum(buffer.nbytes for name, buffer in model.named_buffers() if name in model.state_dict())
    assert weight_bytes(model) == 4 * sum(p.numel() for p in model.parameters()) + kept
    assert weight_bytes(model.half()) == 2 * sum(p.numel() for p in model.parameters()) + kept // 2


@pytest.mark.parametrize("config", [PLAIN, shape(experts=4, experts_shared=1), *DIFFERENT])
def test_multiplications_are_what_torch_counts_of_one_token(config: GPTConfig) -> None:
    model = GPT(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, dtype=torch.long))
    products = {name: flops for name, flops in counter.get_flop_counts()["Global"].items() if name in MATRICES}
    assert 2 * macs_per_token(model) == sum(products.values())


def test_what_a_module_says_is_taken_and_what_is_shared_counts_once() -> None:
    assert (weight_bytes(Packed()), macs_per_token(Packed())) == (5, 7)
    both = nn.ModuleList([Packed(), nn.Linear(3, 4)])
    assert (weight_bytes(both), macs_per_token(both)) == (5 + 4 * 16, 7 + 12)
    twins = nn.ModuleList([nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)])
    twins[1].weight = twins[0].weight
    assert (weight_bytes(twins), macs_per_token(twins)) == (4 * 12, 24)
