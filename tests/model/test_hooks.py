"""Weights are read past a module only where nothing follows it and they are plain tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from lmforge.model.hooks import weights_may_be_read


@pytest.mark.parametrize("follow", [
    lambda part: part.register_forward_hook(lambda *_: None),
    lambda part: part.register_forward_pre_hook(lambda *_: None),
    lambda part: part.register_full_backward_hook(lambda *_: None),
    lambda part: part.register_full_backward_pre_hook(lambda *_: None),
])  # fmt: skip
def test_a_hook_anywhere_inside_forbids_it(follow: Callable[[nn.Module], object]) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert weights_may_be_read(module)
    handle = follow(module[1][0])
    assert not weights_may_be_read(module)
    assert weights_may_be_read(module[0])
    handle.remove()  # type: ignore[attr-defined]
    assert weights_may_be_read(module)


def test_weights_spread_over_devices_forbid_it(one_rank: None) -> None:
    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), init_device_mesh("cpu", (1,))))
    assert not weights_may_be_read(module)


def test_a_tensor_in_the_place_of_a_parameter_may_be_read() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        torch.func.functional_call(module, {"weight": torch.ones(2, 2)}, torch.ones(1, 2))
    assert weights_may_be_read(module)
