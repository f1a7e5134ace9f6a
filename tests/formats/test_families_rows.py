"""Orders of rows: what goes in comes out, bit for bit, and lies where the published layouts put it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.errors import InputError
from lmforge.formats import families_rows as rows
from lmforge.formats.families_rows import Place, Row, Rows
from lmforge.model.config import GPTConfig

LAYOUTS = {
    "apart": (rows.QKV, 3),
    "stacked": (rows.QKV_STACKED, 1),
    "by head": (rows.QKV_BY_HEAD, 1),
    "queries": (rows.QUERIES, 1),
    "keys": (rows.KEYS, 1),
    "one head": (rows.ONE_HEAD, 1),
}


def shape(heads: int, groups: int, width: int, fraction: float, positions: str = "rope") -> GPTConfig:
    return GPTConfig(
        vocab_size=9,
        context=8,
        layers=1,
        d_model=8,
        heads=heads * groups,
        kv_heads=heads,
        head_dim=width,
        d_ff=6,
        rotary_fraction=fraction,
        positions=positions,
    )


def place(layout: Rows, count: int, config: GPTConfig, **more: object) -> Place:
    order = None if layout.order is None else layout.order(config, 0)
    sizes = None if layout.sizes is None else layout.sizes(config, 0)
    names = tuple(f"theirs.{number}.weight" for number in range(count))
    return Place("ours.weight", names, order, sizes, **{"transposed": False, "skipped": 0, **more})  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.sampled_from([4, 8, 12]),
    fraction=st.sampled_from([0.5, 1.0]),
    positions=st.sampled_from(["rope", "learned"]),
    transposed=st.booleans(),
    skipped=st.integers(0, 2),
)
def test_what_is_split_is_filled_again(
    name: str, heads: int, groups: int, width: int, fraction: float, positions: str, transposed: bool, skipped: int
) -> None:
    layout, count = LAYOUTS[name]
    config = shape(heads, 1 if name == "by head" else groups, width, fraction, positions)
    where = place(layout, count, config, transposed=transposed, skipped=skipped)
    assert where.order is not None
    assert where.order.sort().values.tolist() == list(range(len(where.order)))
    ours = torch.randn(len(where.order), 5)
    theirs = dict(where.split(ours))
    assert set(theirs) == set(where.theirs)
    again = torch.full_like(ours, float("nan"))
    where.fill(again, theirs.__getitem__)
    assert torch.equal(again, ours)


def test_rows_lie_where_the_published_layouts_have_them() -> None:
    config = shape(2, 1, 4, 0.5)
    theirs = torch.arange(24)[:, None]  # head, then query, key, value, then channel: 0 turns with 1, 2 and 3 not at all
    ours = torch.empty_like(theirs)
    place(rows.QKV_BY_HEAD, 1, config).fill(ours, lambda name: theirs)
    assert ours.flatten().tolist() == [
        *range(4),
        *range(12, 16),
        *range(4, 8),
        *range(16, 20),
        *range(8, 12),
        *range(20, 24),
    ]
    whole = shape(1, 1, 4, 1.0)
    assert rows.pairs(whole).tolist() == [0, 2, 1, 3]
    assert rows.pairs(shape(1, 1, 4, 1.0, "learned")).tolist() == [0, 1, 2, 3]
    assert Row("a", ("b",)).rows == rows.AS_THEY_ARE


def test_shapes_that_do_not_fit_are_refused() -> None:
    where = place(rows.AS_THEY_ARE, 1, shape(1, 1, 4, 1.0))
    for wrong in (torch.zeros(3, 5), torch.zeros(5, 5), torch.zeros(4, 6), torch.zeros(4)):
        with pytest.raises(InputError, match=r"ours\.weight would be"):
            where.fill(torch.zeros(4, 5), lambda name, wrong=wrong: wrong)  # type: ignore[misc]
