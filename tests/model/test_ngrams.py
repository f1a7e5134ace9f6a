"""Tables of n-grams: what is looked up, and what never was."""

from __future__ import annotations

import dataclasses

import torch

from lmforge.model.gpt import GPT
from lmforge.model.ngrams import NgramEmbedding
from tests.model.test_gpt import PLAIN


def test_ngrams_never_met_add_nothing() -> None:
    """Tables that begin at random put noise under every n-gram that training did not show."""
    tokens = torch.arange(12).view(2, 6)
    with_tables, without = GPT(dataclasses.replace(PLAIN, ngram_rows=64)), GPT(PLAIN)
    for model in (with_tables, without):
        model.initialise(3)
    assert torch.equal(with_tables(tokens), without(tokens))


def test_a_row_depends_on_the_last_three_ids_and_goes_on_from_recent_ones() -> None:
    torch.manual_seed(0)
    tables, ids = NgramEmbedding(101, 4), torch.tensor([[5, 6, 7, 8, 9]])
    whole = tables(ids, torch.zeros(1, 2, dtype=torch.long))
    assert torch.equal(tables(ids[:, 3:], ids[:, 1:3]), whole[:, 3:])
    changed = tables(torch.tensor([[4, 6, 7, 8, 9]]), torch.zeros(1, 2, dtype=torch.long))
    assert torch.equal(changed[:, 3:], whole[:, 3:])
    assert not torch.equal(changed[:, 2], whole[:, 2])
