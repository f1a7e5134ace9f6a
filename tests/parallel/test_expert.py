"""Tokens go to the process that has their expert, however unevenly, and gradients come back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from bench.quality.layouts import CONTEXT, ROWS, Case, change_all, join_for
from bench.ranks import on_ranks

from lmforge.model.cache import ForwardContext
from lmforge.model.experts import Experts, dispatch_here
from lmforge.parallel import agree
from lmforge.parallel.expert import as_many, dispatch_over
from tests.parallel.passes import alone, check_same, laid_out, rows_of, small, together

CONFIG = small(experts=4, experts_active=2, experts_shared=1, balance="loss", d_ff=32)


def tokens_travel() -> None:
    """Choices of all kinds: even, all to one process, and a process without tokens."""
    mesh = join_for({"expert": 2})
    torch.manual_seed(0)
    whole = Experts(CONFIG, 0)
    part = copy.deepcopy(whole)
    own = range(2 * mesh.rank, 2 * mesh.rank + 2)
    for name in [*part.experts._modules]:
        if int(name) not in own:
            del part.experts._modules[name]
    picks = [torch.randint(4, (9, 2)), torch.zeros(9, 2, dtype=torch.long), torch.full((9, 2), 3)]
    for chosen, here in [*((each, 5 if mesh.rank else 9) for each in picks), (picks[0], 0 if mesh.rank else 9)]:
        x, weights = torch.randn(9, 16), torch.rand(9, 2)
        dist.broadcast(chosen, 0)
        wanted = [x[:here].clone().requires_grad_(), weights[:here].clone().requires_grad_()]
        given = [each.detach().clone().requires_grad_() for each in wanted]
        expected = wanted[0] * wanted[1][:, :1]
        if here:
            expected = dispatch_here(wanted[0], chosen[:here], wanted[1], list(whole.experts))
        y = dispatch_over(mesh.group("expert"), 4)(given[0], chosen[:here], given[1], list(part.experts))
        assert torch.allclose(y, expected, atol=1e-6)
        expected.square().sum().backward()
        y.square().sum().backward()
        for mine, theirs in zip(given, wanted, strict=True):
            assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)  # type: ignore[arg-type]
        for number in range(4):
            for name, parameter in whole.experts[number].named_parameters():
                total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(total)
                if number in own:
                    mine = part.experts._modules[str(number)].get_parameter(name).grad  # type: ignore[union-attr]
                    assert torch.allclose(torch.zeros_like(total) if mine is None else mine, total, atol=1e-5)
        whole.zero_grad()
        part.zero_grad()


def equally_many_micro_batches() -> None:
    mesh = join_for({"expert": 2})
    mine = [range(2), range(2, 4), range(4, 5)] if mesh.rank else [range(4), range(4, 8)]
    made = as_many(mesh, mine)
    assert len(made) == 3
    assert [row for piece in made for row in piece] == [row for piece in mine for row in piece]
    assert as_many(mesh, [range(1)] if mesh.rank else [range(1), range(1, 2)])[-1] == range(1, 1 if mesh.rank else 2)
    # seven rows, three and four: one process has an empty micro-batch
    nats, gradients, norm = together(CONFIG, {"expert": 2}, 1)
    nats = mesh.total(nats)[0]
    if mesh.is_main:
        expected = alone(CONFIG, 1)
        assert abs(nats / expected[0] - 1) < 1e-5
        assert norm > 0
        assert gradients.keys() == expected[1].keys()


def loads_are_those_of_all() -> None:
    layout, model = laid_out(CONFIG, {"expert": 2})
    inputs = rows_of(0, 8)[0]
    ff = model.blocks[0].ff
    assert isinstance(ff, Experts)
    assert [*ff.experts._modules] == (["0", "1"] if layout.is_main else ["2", "3"])
    context = ForwardContext()
    ff(torch.randn(2 if layout.is_main else 3, 4, 16), context)
    assert int(context.loads[0].sum()) == 5 * 4 * CONFIG.experts_active
    result = together(CONFIG, {"expert": 2}, 8, rows=8)  # one micro-batch of one process
    total = layout.mesh.total(result[0])[0]
    if agree.is_main():
        check_same((total, *result[1:]), alone(CONFIG, 8, rows=8))
    assert len(inputs) == 8


def of_two_processes() -> None:
    tokens_travel()
    equally_many_micro_batches()
    loads_are_those_of_all()


def test_two_processes_give_what_one_gives() -> None:
    assert on_ranks(2, of_two_processes) == [None, None]  # what is asserted in a rank fails here too


@pytest.mark.slow
def test_every_layout_of_experts_goes_on_from_every_other(tmp_path: Path) -> None:
    sizes = [{"expert": 4}, {"expert": 2, "tensor": 2}, {"expert": 2, "context": 2}]
    whole = {"micro_batch_tokens": ROWS * CONTEXT}  # what all processes run at once is one micro-batch
    cases = [Case(" × ".join(size), size, "experts", "muon", train=whole) for size in sizes]
    pairs = on_ranks(4, change_all, cases, str(tmp_path), limit=900)[0]
    assert len(pairs) == 12
    assert all(figures["same"] and figures["loss"] < 1e-5 for _, figures in pairs), pairs
