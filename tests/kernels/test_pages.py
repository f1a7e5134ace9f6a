"""Weights stay what and where they are; pages that they hardly touch are left alone."""

from __future__ import annotations

import pytest
import torch

from lmforge.kernels import pages
from lmforge.kernels.pages import LEAST, PAGE, on_large_pages, pages_of


def test_pages_are_those_that_tensors_fill() -> None:
    whole = torch.zeros(4 * PAGE, dtype=torch.uint8)
    first = -(-whole.data_ptr() // PAGE) * PAGE
    at = first - whole.data_ptr()
    inside = whole[at : at + 2 * PAGE]
    assert pages_of([inside, inside]) == [first, first + PAGE]
    assert pages_of([whole[at + PAGE - 5 : at + PAGE + PAGE // 2 + 1]]) == [first + PAGE]
    assert pages_of([whole[at : at + PAGE // 2]]) == []
    # two that share a page, each less than half of it
    assert pages_of([whole[at + 10 : at + PAGE // 2], whole[at + PAGE // 2 : at + PAGE]]) == [first]


def test_numbers_and_addresses_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(2 * LEAST // 4)
    place, before = weight.data_ptr(), weight.clone()
    moved = on_large_pages([weight])
    assert 0 <= moved <= weight.nbytes + 2 * PAGE
    assert weight.data_ptr() == place
    assert torch.equal(weight, before)
    assert on_large_pages([weight.view(torch.uint8)[:PAGE]]) == 0  # too little to matter
    asked: list[int] = []
    monkeypatch.setattr(pages, "_advise", lambda: lambda *arguments: bool(asked.append(1)))
    assert on_large_pages([torch.zeros(30 * PAGE, dtype=torch.uint8)]) == 0
    assert len(asked) == 2 * (pages.TRIED + 1)
    monkeypatch.setattr(pages, "_advise", lambda: None)
    assert on_large_pages([weight]) == 0
