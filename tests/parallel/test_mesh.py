"""One process is the distributed path with one rank; axes, their groups and what those sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmforge.errors import InputError
from lmforge.parallel.mesh import Mesh, join_mesh, sizes_of
from lmforge.recipe.schema import Parallel


def test_one_process_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    mesh = join_mesh()
    assert mesh.is_main
    assert mesh.group("data", "tensor") is None
    assert mesh.total(1.5, 2) == [1.5, 2.0]
    mesh.wait()
    mesh.close()


def test_another_number_of_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        InputError, match=r"parallel\.data: 4 processes asked for, 1 started; run: torchrun --nproc-per-node 4"
    ):
        join_mesh(Parallel(data=4))


def test_axes_are_placed_in_the_order_of_ranks() -> None:
    sizes = {"pipeline": 2, "data": 2, "tensor": 3}
    meshes = [Mesh(rank, 12, torch.device("cpu"), sizes) for rank in range(12)]
    assert [mesh.places["tensor"] for mesh in meshes] == [0, 1, 2] * 4
    assert [mesh.data_rank for mesh in meshes] == [0, 0, 0, 1, 1, 1] * 2
    assert meshes[7].ranks("tensor") == [6, 7, 8]
    assert meshes[7].ranks("pipeline") == [1, 7]
    assert meshes[7].ranks("pipeline", "data") == [1, 4, 7, 10]
    assert (meshes[7].size("pipeline", "data"), meshes[7].index("pipeline", "data")) == (4, 2)


@pytest.mark.parametrize(
    ("asked", "world", "words"),
    [
        ({"tensor": 2}, 3, r"parallel: tensor 2 asks for a multiple of 2 processes, 3 started"),
        ({"data": 2, "shard": 2}, 2, r"parallel: data 2 × shard 2 is 4 processes, 2 started; run: torchrun"),
    ],
)
def test_axes_that_make_another_number_are_refused(asked: dict[str, int], world: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        sizes_of(Parallel(**asked), world)
    assert sizes_of(Parallel(tensor=2), 6)["data"] == 3


def test_groups_are_those_of_the_axes(four: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(each["mesh"] for each in four):
        across, along = [rank % 2, rank % 2 + 2], [rank // 2 * 2, rank // 2 * 2 + 1]
        assert found["sums"] == {
            ("tensor",): (sum(10.0**each for each in along), along),
            ("shard",): (sum(10.0**each for each in across), across),
            ("shard", "tensor"): (1111.0, [0, 1, 2, 3]),
            ("data",): (10.0**rank, [rank]),
        }
        assert found["data"] == (rank // 2, 2)
        assert found["total"] == [sum(10.0**each for each in across)]  # over those who have rows of their own
