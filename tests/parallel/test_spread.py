"""Where parameters lie: parts of one dimension, axes of a gradient's summands, copies."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Cut, Spread, even_parts


@given(st.integers(0, 40), st.integers(1, 9))
def test_even_parts_are_all_in_order(length: int, count: int) -> None:
    parts = even_parts(length, count)
    assert [*chain(*parts)] == [*range(length)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_parts_of_fused_matrices_make_the_whole(dim: int) -> None:
    whole = torch.arange(6 * 6 * 6.0).view(6, 6, 6)
    cut = Cut("tensor", (6, 6, 6), dim, ((range(1), range(4, 6)), (range(1, 4),), ()))
    parts = [cut.part(whole, index) if cut.parts[index] else whole.narrow(dim, 0, 0) for index in range(3)]
    assert [part.shape[dim] for part in parts] == [3, 3, 0]
    assert torch.equal(cut.joined(parts), whole)


def test_what_is_entered_adds_up() -> None:
    sizes = {"data": 2, "shard": 3, "expert": 2, "tensor": 2}
    spread = Spread(Mesh(0, 24, torch.device("cpu"), sizes))
    assert spread.summed_over("plain") == ("data", "shard", "expert")
    assert spread.copies("plain") == 24
    spread.enter("norm", partial=("tensor",))
    assert spread.summed_over("norm") == ("data", "shard", "expert", "tensor")
    spread.enter("expert", own="expert")
    assert spread.summed_over("expert") == ("data", "shard")
    spread.enter("expert", Cut("tensor", (4,), 0, ((range(2),), (range(2, 4),))))
    assert spread.copies("expert") == 6
    assert spread.part("expert", torch.arange(4.0)).tolist() == [0, 1]
    assert spread.shape("expert", torch.zeros(2)) == (4,)
