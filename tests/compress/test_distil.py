"""A student begins as a part of its teacher, comes nearer to it, and is a model like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.compress.distil import Distil, DistilStep, spread
from lmforge.model.gpt import GPT
from tests.compress.conftest import context_of, relative, small_model, tokens


def divergence(teacher: GPT, student: GPT) -> float:
    p, q = (model(tokens(8, 24, 99)).log_softmax(-1) for model in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_layers_are_spread_with_both_ends() -> None:
    assert spread(3, 6) == [0, 2, 5]
    assert spread(4, 4) == [0, 1, 2, 3]
    assert spread(1, 5) == [0]


@pytest.mark.parametrize(
    "widths",
    [{"layers": 1}, {"d_ff": 64, "kv_heads": 1}, {"d_model": 32}, {"begin": "fresh"}],
    ids=str,
)
def test_a_student_learns_and_is_what_its_config_says(tmp_path: Path, widths: dict[str, object]) -> None:
    teacher = small_model()
    step = DistilStep(steps=30, rows=4, peak_lr=2e-3, **widths)  # type: ignore[arg-type]
    before = Distil().apply(teacher, DistilStep(steps=1, peak_lr=1e-12, **widths), context_of(teacher, tmp_path / "a"))  # type: ignore[arg-type]
    after = Distil().apply(teacher, step, context_of(teacher, tmp_path / "b"))
    with torch.no_grad():
        assert divergence(teacher, after.model) < divergence(teacher, before.model)
    assert after.fresh
    again = GPT(after.model.config)
    again.load_state_dict(after.model.state_dict())
    assert torch.equal(again(tokens()), after.model(tokens()))
    if widths.get("layers"):
        assert torch.equal(before.model.blocks[0].ff.up.weight.sign(), teacher.blocks[0].ff.up.weight.sign())  # type: ignore[union-attr]


@torch.no_grad()
def test_a_fresh_student_shares_nothing_with_the_model(tmp_path: Path) -> None:
    teacher = small_model()
    made = Distil().apply(teacher, DistilStep(begin="fresh", steps=1, d_ff=32), context_of(teacher, tmp_path)).model
    assert relative(made.embed.weight, teacher.embed.weight) > 0.5  # type: ignore[union-attr]
