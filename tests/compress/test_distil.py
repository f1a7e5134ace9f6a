"""A student begins as a part of its teacher, comes nearer to it, and is a model like any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lmforge.compress.distil import Distil, DistilStep, spread
from lmforge.compress.healing import Healing, Rows, distillation_loss, heal, hidden_distance
from lmforge.compress.masks import MaskedLinear, mask_linear
from lmforge.compress.method import CalibrationBatch
from lmforge.compress.quantize import quantize
from lmforge.compress.targets import CachedTargets, LiveTargets, sample
from lmforge.compress.teachers import Teacher
from lmforge.errors import InputError
from lmforge.model.gpt import GPT
from lmforge.recipe import parse_recipe
from tests.compress.conftest import context_of, relative, rows, small_model, tokens
from tests.serve.conftest import save_tiny


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


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    models = (small_model(0), small_model(1))
    row = rows(2)
    together = Teacher(models)
    reached = together.log_probabilities(together.hidden(row), 1.0).exp()
    wanted = sum(model(row.inputs)[row.counts].softmax(-1) for model in models) / 2
    assert torch.allclose(reached, wanted, atol=1e-6)


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other")
    with pytest.raises(InputError, match=r"other: a teacher with 280 tokens cannot teach a student with 300"):
        Teacher.of(context_of(small_model(), tmp_path), [other], torch.device("cpu"))
    own = save_tiny(tmp_path / "own", seed=4)
    small = small_model(vocab_size=280)
    assert (
        len(
            Teacher.of(
                context_of(small, tmp_path, tokenizer=own / "tokenizer.json"), [other], torch.device("cpu")
            ).models
        )
        == 2
    )


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    model, _ = quantize(small_model())
    with pytest.raises(InputError, match="a model can be trained before it is quantised"):
        heal(model, Healing(steps=1), context_of(small_model(), tmp_path))
    with pytest.raises(InputError, match=r"d_ff: 999 is more than the model's 128"):
        Distil().apply(small_model(), DistilStep(d_ff=999), context_of(small_model(), tmp_path))
    with pytest.raises(InputError, match=r"reverse and hidden need the teacher itself"):
        parse_recipe({"compress": {"steps": [{"method": "distil", "teacher": "sampled", "reverse": 0.5}]}})


@torch.no_grad()
def test_a_fresh_student_shares_nothing_with_the_model(tmp_path: Path) -> None:
    teacher = small_model()
    made = Distil().apply(teacher, DistilStep(begin="fresh", steps=1, d_ff=32), context_of(teacher, tmp_path)).model
    assert relative(made.embed.weight, teacher.embed.weight) > 0.5  # type: ignore[union-attr]
