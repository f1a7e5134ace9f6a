"""The short training: its loss is what it says, its rows follow one another, and stopping changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lmforge.compress.healing import Healing, Rows, distillation_loss, heal, hidden_distance
from lmforge.compress.masks import MaskedLinear, mask_linear
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.targets import LiveTargets
from lmforge.compress.teachers import Teacher
from tests.compress.conftest import context_of, rows, small_model


def test_healing_that_was_stopped_goes_on_as_it_would_have(tmp_path: Path) -> None:
    teacher, student = small_model(), small_model(1)
    mask_linear(student, "blocks.0.ff.up", torch.rand(128, 64) > 0.5)
    whole, _ = heal(student, Healing(steps=10), context_of(teacher, tmp_path / "whole"))
    stopping = context_of(teacher, tmp_path / "stopped")

    def killed(number: int) -> CalibrationBatch:
        if number > 15:
            raise KeyboardInterrupt
        return rows(4, 24, number)

    with pytest.raises(KeyboardInterrupt):
        heal(student, Healing(steps=10), dataclasses.replace(stopping, draw=killed))
    assert list((tmp_path / "stopped" / "step").glob("*-training.pt"))
    again, details = heal(student, Healing(steps=10), stopping)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert details["steps"] == 10
    layer = again.get_submodule("blocks.0.ff.up")
    assert isinstance(layer, MaskedLinear)
    assert not layer.weight[~layer.mask].any()


def test_rows_follow_one_another_whatever_the_batch(tmp_path: Path) -> None:
    context = context_of(small_model(), tmp_path)
    each = Rows(context, Healing(rows=3, steps=5))
    given_out = torch.cat([each(step).inputs for step in range(4)])
    assert torch.equal(given_out, torch.cat([rows(4, 24, number).inputs for number in (1, 2, 3)]))
    again = Rows(context, Healing(rows=3, steps=5, distinct=2))
    assert torch.equal(again(2).inputs, again(0).inputs)
    assert Rows(context, Healing(rows=2, tokens=480)).steps == 10


@torch.no_grad()
def test_the_loss_is_the_divergence_it_says() -> None:
    teacher, row = small_model(), rows(2)
    live = LiveTargets(Teacher((teacher,)), 2.0)
    n = int(row.counts.sum())
    logits, hidden = torch.randn(n, 300), torch.randn(n, 64)
    p = (teacher(row.inputs)[row.counts] / 2).softmax(-1)
    q = (logits / 2).softmax(-1)
    forward, reverse = float((p * (p / q).log()).sum()), float((q * (q / p).log()).sum())
    text = float(torch.nn.functional.cross_entropy(logits, row.targets[row.counts], reduction="sum"))
    for reversed_share, labels in ((0.0, 0.0), (1.0, 0.0), (0.25, 0.5)):
        settings = Healing(temperature=2.0, reverse=reversed_share, labels=labels)
        wanted = (1 - labels) * 4 * ((1 - reversed_share) * forward + reversed_share * reverse) + labels * text
        assert float(distillation_loss(logits, hidden, live, row, settings)) == pytest.approx(wanted, rel=1e-3)
    own = teacher.hidden(row.inputs)[row.counts]
    plain = distillation_loss(logits, hidden, live, row, Healing(temperature=2.0))
    assert torch.allclose(distillation_loss(logits, own, live, row, Healing(temperature=2.0, hidden=7.0)), plain)
    assert distillation_loss(logits, hidden, live, row, Healing(temperature=2.0, hidden=7.0)) > plain + 7
    assert float(hidden_distance(hidden, hidden)) == pytest.approx(0, abs=1e-3)
    assert float(hidden_distance(hidden, hidden[:, :32])) > 0.1
