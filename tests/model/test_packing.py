"""Documents are kept apart: packed equals alone, and no bit depends on the neighbours, whatever the kind of
attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmforge.model.gpt import GPTConfig
from lmforge.model.packing import Packing
from tests.model.test_gpt import PARALLEL, PLAIN, SHAPES, network, tokens

LONG = [dataclasses.replace(shape, context=96) for shape in (*SHAPES, PARALLEL)] + [
    dataclasses.replace(PLAIN, context=96, attention=("sparse", "window"), window=9, stride=7, pool=4, pooling="conv"),
    dataclasses.replace(PLAIN, context=96, attention=("lsh", "linear"), lsh_span=8),
]


def packed(lengths: list[int], rows: int, length: int) -> torch.Tensor:
    """Document numbers (rows, length): documents of the given lengths one after another, cut where a row ends."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    return torch.nn.functional.pad(numbers, (0, rows * length), value=len(lengths))[: rows * length].view(rows, length)


def runs(documents: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, begin, end) of each document."""
    spans = []
    for row, line in enumerate(documents.tolist()):
        begin = 0
        for at in range(1, len(line) + 1):
            if at == len(line) or line[at] != line[begin]:
                spans.append((row, begin, at))
                begin = at
    return spans


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 90), max_size=12), st.integers(1, 3), st.integers(1, 96))
def test_packing_moves_each_document_to_a_row_of_its_own(lengths: list[int], rows: int, length: int) -> None:
    documents = packed(lengths, rows, length)
    x = torch.randn(rows, length, 3, dtype=torch.float64, requires_grad=True)
    packing = Packing(documents)
    parts = packing.apart(x)
    assert sum(len(part) for part in parts) == len(runs(documents))
    assert sum(part.shape[0] * part.shape[1] for part in parts) <= max(2 * rows * length, 16 * len(runs(documents)))
    again = packing.together([part * 2 for part in parts])
    assert torch.equal(again, x * 2)
    weights = torch.randn_like(again)
    again.backward(weights)
    assert torch.equal(x.grad, weights * 2)
    for row, begin, end in runs(documents):
        assert packing.positions[row, begin:end].tolist() == list(range(end - begin))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(range(len(LONG))), st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 2))
def test_a_packed_document_equals_the_document_alone(shape: int, lengths: list[int], rows: int) -> None:
    model = network(LONG[shape]).double()
    documents, x = packed(lengths, rows, 80), tokens(rows, 80)
    y = tokens(rows, 80, 1)
    model.loss(x, y, documents).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        together = model(x, documents=documents)
    for row, begin, end in runs(documents):
        alone = model(x[row : row + 1, begin:end])
        torch.testing.assert_close(together[row, begin:end], alone[0], rtol=1e-9, atol=1e-9)
        model.loss(x[row : row + 1, begin:end], y[row : row + 1, begin:end]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("config", LONG)
def test_no_bit_of_a_document_depends_on_another(config: GPTConfig) -> None:
    model, x = network(config), tokens(2, 96)
    documents = packed([30, 1, 20, 70, 7, 5], 2, 96)
    with torch.no_grad():
        before = model(x, documents=documents)
        for row, begin, end in runs(documents):
            changed = x.clone()
            changed[row, begin:end] = (changed[row, begin:end] + 1) % 50
            after = model(changed, documents=documents)
            outside = torch.ones(2, 96, dtype=torch.bool)
            outside[row, begin:end] = False
            assert torch.equal(before[outside], after[outside])
            assert not torch.equal(before[~outside], after[~outside])


def test_learned_positions_restart() -> None:
    model = network(dataclasses.replace(PLAIN, positions="learned"))
    x = tokens(1, 8).repeat(1, 3)
    with torch.no_grad():
        logits = model(x, documents=packed([8, 8, 8], 1, 24))
    assert torch.allclose(logits[:, :8], logits[:, 8:16], atol=1e-5)
    assert torch.allclose(logits[:, :8], logits[:, 16:], atol=1e-5)
