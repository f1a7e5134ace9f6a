"""Each process has an early and a late piece of every row, and knows where its documents begin."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.packing import Packing
from lmforge.parallel.context_share import Rows
from tests.parallel.shared_rows import documents_of, share_of


@given(st.integers(1, 5), st.integers(1, 60))
def test_every_token_is_one_process_s_and_stands_where_it_stands_in_its_document(size: int, length: int) -> None:
    documents = documents_of(3, length)
    tokens = torch.arange(3 * length).view(3, length)
    views = [Rows(share_of(size, index), tokens, documents) for index in range(size)]
    assert sorted(torch.cat([rows.index for rows in views]).tolist()) == list(range(length))
    for index, rows in enumerate(views):
        assert torch.equal(rows.cut(tokens), tokens[:, rows.index])
        assert torch.equal(rows.positions, Packing(documents).positions[:, rows.index])
        assert rows.own == views[0].pieces_of(index)


@given(st.integers(2, 6), st.integers(1, 8))
def test_all_have_the_same_pairs_of_causal_attention(size: int, multiple: int) -> None:
    length = 2 * size * multiple
    tokens = torch.zeros(1, length, dtype=torch.long)
    pairs = {int((Rows(share_of(size, index), tokens, None).index + 1).sum()) for index in range(size)}
    assert len(pairs) == 1


def test_reach_is_the_beginning_of_document_or_window() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]])
    rows = Rows(share_of(2, 0), torch.zeros(1, 8, dtype=torch.long), documents)
    assert rows.reach(None)[0].tolist() == [[0, 0, 0, 3, 3, 3, 3, 7]]
    assert rows.reach(2)[0].tolist() == [[0, 0, 1, 3, 3, 4, 5, 7]]
