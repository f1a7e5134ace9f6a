"""What is measured of weights and losses is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmforge.compress.importance import divergence, input_norms, mean_nats, measured, networks, weight_scores
from lmforge.compress.prune import Prune, PruneStep, layer_names
from tests.compress.conftest import context_of, rows, small_model


def test_the_least_by_the_chosen_importance_go(tmp_path: Path) -> None:
    model = small_model()
    context = context_of(model, tmp_path)
    scores = measured(model, context.calibration, squares=True)
    for kind in ("magnitude", "activation", "taylor"):
        result = Prune().apply(model, PruneStep(share=0.6, importance=kind), context).model  # type: ignore[arg-type]
        for name in layer_names(model):
            score = weight_scores(model, name, kind, scores)
            mask = result.get_submodule(name).mask
            assert score[mask].min() >= score[~mask].max()


def test_mean_nats_counts_what_the_loss_counts() -> None:
    model, batch = small_model(), rows(3)
    loss = model.loss(batch.inputs, batch.targets) / int(batch.counts.sum())
    assert mean_nats(model, [batch]) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_first_order_importance_foretells_a_small_cut() -> None:
    """Half a percent off a unit's weights changes the loss by as much as its weights times their gradients say."""
    model, batch = small_model(), rows(4)
    (columns,) = measured(model, [batch]).columns
    foretold = float(columns["blocks.0.ff.down.weight"][7])
    before = mean_nats(model, [batch])
    with torch.no_grad():
        model.blocks[0].ff.down.weight[:, 7] *= 0.995  # type: ignore[union-attr]
    assert mean_nats(model, [batch]) - before == pytest.approx(-0.005 * foretold, rel=0.2, abs=2e-7)


def test_norms_of_inputs_and_the_divergence() -> None:
    model, batch = small_model(), rows(4)
    norms = input_norms(model, [batch])
    with torch.no_grad():
        x = model.hidden(batch.inputs)
    assert torch.allclose(norms["head"], x.flatten(0, 1).square().sum(0).sqrt(), rtol=1e-4)
    assert divergence(model, model, [batch]) == pytest.approx(0, abs=1e-6)
    assert divergence(model, small_model(1), [batch]) > 0.01
    assert networks(small_model(experts=4), 1) == [f"blocks.1.ff.experts.{number}" for number in range(4)]
