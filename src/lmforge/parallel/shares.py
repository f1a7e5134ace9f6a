"""Tensors that processes share row by row (torch's DTensor, as `shard` leaves them): what is here, and the whole.

Told by what they can do and not by their class, which takes a second and more to import; a tensor that nobody shares is
its own part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_shared(tensor: Tensor) -> bool:
    """Whether other processes hold the rest of it."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What of a tensor is in this process, in the same memory."""
    shared: Any = tensor
    here: Tensor = shared.to_local() if is_shared(tensor) else tensor
    return here


def gathered(tensor: Tensor) -> Tensor:
    """A tensor put together from all that share it, who take part."""
    shared: Any = tensor
    whole: Tensor = shared.full_tensor() if is_shared(tensor) else tensor
    return whole


def first_row(tensor: Tensor) -> int:
    """The row of the whole that is this process's first: rows lie in equal parts, the last of which may be short."""
    if not is_shared(tensor):
        return 0
    shared: Any = tensor
    over = shared.device_mesh
    part = -(-tensor.shape[0] // over.size(over.ndim - 1))
    begin: int = min(tensor.shape[0], part * over.get_local_rank(over.ndim - 1))
    return begin


def part_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Of a whole tensor the rows that this process has of `tensor`."""
    if not is_shared(tensor):
        return whole
    begin = first_row(tensor)
    return whole[begin : begin + len(local(tensor))]


def like_part(tensor: Tensor, part: Tensor) -> Tensor:
    """This process's part as `tensor` is shared: one more tensor of its shape."""
    if not is_shared(tensor):
        return part
    shared: Any = tensor
    made: Tensor = type(shared).from_local(
        part, shared.device_mesh, shared.placements, run_check=False, shape=shared.shape, stride=shared.stride()
    )
    return made
