"""Replicas share weights, split rows, and give the sum of gradients that one network gives."""

from __future__ import annotations

import pytest
import torch

from lmforge.parallel.thread_replicas import Replicas


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "rows"), [(1, 7), (2, 7), (3, 7), (4, 2)])
def test_gradients_are_those_of_one_network(count: int, rows: int) -> None:
    data = torch.randn(rows, 4)
    seen: list[int] = []

    def work(model: torch.nn.Module, share: range) -> int:
        seen.extend(share)
        model(data[share.start : share.stop]).square().sum().backward()
        return len(share)

    one, many = network(), network()
    one(data).square().sum().backward()
    replicas = Replicas(many, count, 1)
    assert sum(replicas.run(work, range(rows))) == rows
    assert sorted(seen) == list(range(rows))
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is None for model in replicas.models[1:] for parameter in model.parameters())
    with torch.no_grad():
        next(many.parameters()).add_(1)
    assert all(torch.equal(next(model.parameters()), next(many.parameters())) for model in replicas.models)
    replicas.close()


def test_an_error_in_a_replica_reaches_the_caller() -> None:
    replicas = Replicas(network(), 2, 1)

    def fails(_model: torch.nn.Module, share: range) -> None:
        if share.start:
            raise ValueError("in the second")

    with pytest.raises(ValueError, match="in the second"):
        replicas.run(fails, range(2))
    replicas.close()
