"""A tensor that nobody shares is its own part; shared ones are in `on_four` (FSDP)."""

from __future__ import annotations

import torch

from lmforge.parallel.shares import first_row, gathered, is_shared, like_part, local, part_like


class Shared:
    """The third part of ten rows over four processes, as DTensor tells it."""

    shape, ndim = torch.Size((10, 2)), 1

    def __init__(self) -> None:
        self.device_mesh = self

    def to_local(self) -> torch.Tensor:
        return torch.zeros(3, 2)

    def size(self, _dim: int) -> int:
        return 4

    def get_local_rank(self, _dim: int) -> int:
        return 2


def test_a_tensor_of_one_process_is_whole() -> None:
    tensor, whole = torch.zeros(3, 2), torch.ones(3, 2)
    assert not is_shared(tensor)
    assert local(tensor) is tensor
    assert gathered(tensor) is tensor
    assert first_row(tensor) == 0
    assert part_like(tensor, whole) is whole
    assert like_part(tensor, whole) is whole


def test_rows_of_a_shared_tensor_begin_after_those_of_earlier_processes() -> None:
    shared = Shared()
    assert is_shared(shared)
    assert first_row(shared) == 6
    assert part_like(shared, torch.arange(20).view(10, 2)).tolist() == [[12, 13], [14, 15], [16, 17]]
