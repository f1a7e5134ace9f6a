"""What a cache keeps of a distribution is unbiased, or says how much it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.compress.targets import CachedTargets, sample
from lmforge.compress.teachers import Teacher
from tests.compress.conftest import rows, small_model


@pytest.mark.parametrize("proposal", [1.0, 0.7])
def test_the_sampled_cache_is_unbiased_and_top_k_is_not(proposal: float) -> None:
    log_p = torch.log_softmax(3 * torch.randn(1, 40, generator=torch.Generator().manual_seed(0)), -1)
    generator = torch.Generator().manual_seed(1)
    drawn, weights = sample(log_p.expand(20_000, -1), 8, proposal, generator)
    mean = torch.zeros(40).index_add_(0, drawn.flatten(), weights.flatten()) / 20_000
    assert torch.allclose(mean, log_p.exp()[0], atol=5e-3)
    top = log_p.exp()[0].topk(8)
    kept = torch.zeros(40).scatter_(0, top.indices, top.values / top.values.sum())
    assert not torch.allclose(kept, log_p.exp()[0], atol=5e-3)


def test_a_cache_is_filled_once_and_says_its_bias(tmp_path: Path) -> None:
    teacher, row = small_model(), rows(2)
    first = CachedTargets(Teacher((teacher,)), 1.0, tmp_path, 20, None, 1)
    student = torch.randn(int(row.counts.sum()), 300).log_softmax(-1)
    value = first(row).forward(student)
    second = CachedTargets(Teacher((teacher,)), 1.0, tmp_path, 20, None, 1)
    assert torch.equal(second(row).forward(student), value)
    assert (first.misses, first.hits, second.misses, second.hits) == (1, 0, 0, 1)
    assert "of the probability is left out" in second.details()["bias"]
    other = CachedTargets(Teacher((small_model(1),)), 1.0, tmp_path, 20, None, 1)
    other(row)
    assert other.misses == 1
