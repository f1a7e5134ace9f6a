"""Optimizers: orthogonal steps, groups by rule, the schedule's shape."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Train
from lmforge.train.optim import Muon, build_optimizers, orthogonalise, rate, set_rate


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99))
def test_orthogonalised_matrices_have_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    matrices = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    singular = torch.linalg.svdvals(matrices)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    # The iteration lifts singular values down to a thousandth of the norm; smaller ones stay small.
    lifted = singular > 5e-3 * matrices.norm(dim=(-2, -1))[:, None]
    assert (values[lifted] > 0.6).all()
    assert (values < 1.3).all()


def test_orthogonalising_keeps_directions() -> None:
    u, s, v = torch.linalg.svd(torch.randn(6, 6), full_matrices=False)
    expected = u @ v
    found = orthogonalise((u @ torch.diag(s) @ v)[None])[0]
    assert (found * expected).sum() / (found.norm() * expected.norm()) > 0.97


@pytest.mark.parametrize("shape", [(128, 128), (256, 64), (64, 256)])
@pytest.mark.parametrize("units", [True, False])
def test_large_matrices_are_orthogonalised_whatever_they_are_multiplied_in(
    shape: tuple[int, int],
    units: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
    for seed in range(4):
        u, _, v = torch.linalg.svd(
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)), full_matrices=False
        )
        found = orthogonalise((u @ torch.diag(torch.linspace(0.05, 1, min(shape))) @ v)[None])[0]
        assert (found * (u @ v)).sum() / (found.norm() * (u @ v).norm()) > 0.99
        assert torch.linalg.svdvals(found).max() < 1.3


def test_stacked_projections_are_orthogonalised_one_by_one() -> None:
    weight = torch.nn.Parameter(torch.zeros(12, 4))
    weight.grad = torch.randn(12, 4)
    optimizer = Muon([{"params": [weight], "pieces": 3}], lr=1.0, momentum=0.0)
    optimizer.step()
    for piece in weight.detach().view(3, 4, 4):
        assert torch.allclose(piece @ piece.T, torch.eye(4), atol=0.35)


def test_groups_by_rule() -> None:
    model = GPT(
        GPTConfig(
            vocab_size=20,
            context=8,
            layers=2,
            d_model=8,
            heads=2,
            kv_heads=2,
            d_ff=16,
            ngram_rows=10,
            biases=True,
            norm="layernorm",
        )
    )
    optimizers = build_optimizers(model, Train(optimizer="muon", weight_decay=0.3))
    grouped = {
        id(p): (name, group["weight_decay"])
        for name, o in optimizers.items()
        for group in o.param_groups
        for p in group["params"]
    }
    assert len(grouped) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        owner, decay = grouped[id(parameter)]
        assert owner == ("muon" if name.startswith("blocks") and parameter.ndim == 2 else "adamw"), name
        assert decay == (0.3 if parameter.ndim == 2 and not name.startswith("ngrams") else 0.0), name
    assert list(build_optimizers(model, Train())) == ["adamw"]


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_a_small_problem_is_learned(kind: str) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=16, context=8, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32))
    model.initialise(0)
    optimizers = build_optimizers(
        model, Train(optimizer=kind, peak_lr=0.2 if kind == "sgd" else 1e-2, weight_decay=0.0)
    )
    x = torch.arange(8).repeat(4, 1)
    losses = []
    for _ in range(80):
        loss = model.loss(x, x + 1) / x.numel()
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        model.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < (0.75 if kind == "sgd" else 0.2) * losses[0]  # plain descent is slow on such a network


@given(steps=st.integers(1, 500), warmup=st.integers(0, 50), final=st.floats(0, 1))
def test_the_schedule(steps: int, warmup: int, final: float) -> None:
    shares = [rate(step, steps, warmup, final) for step in range(steps)]
    assert all(0 <= share <= 1 + 1e-12 for share in shares)
    rising, falling = shares[:warmup], shares[warmup:]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    if warmup < steps:
        assert shares[warmup] == pytest.approx(1.0)
        assert rate(steps, steps, warmup, final) == pytest.approx(final)


def test_set_rate_scales_each_groups_peak() -> None:
    model = GPT(GPTConfig(vocab_size=20, context=8, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=16))
    optimizers = build_optimizers(model, Train(optimizer="muon", peak_lr=0.1, matrix_lr=0.4))
    set_rate(optimizers, 0.5)
    assert {g["lr"] for g in optimizers["adamw"].param_groups} == {0.05}
    assert {g["lr"] for g in optimizers["muon"].param_groups} == {0.2}


@given(steps=st.integers(5, 500), warmup=st.integers(0, 20), final=st.floats(0, 1))
def test_stable_then_falling(steps: int, warmup: int, final: float) -> None:
    shares = [rate(step, steps, warmup, final, "wsd") for step in range(steps)]
    falls = max(warmup, math.ceil(0.8 * steps))
    assert all(share == 1 for share in shares[warmup:falls])
    assert all(a >= b for a, b in itertools.pairwise(shares[falls:]))
    assert rate(steps, steps, min(warmup, steps - 1), final, "wsd") == pytest.approx(final)
    longer = [rate(step, 2 * steps, warmup, final, "wsd") for step in range(2 * steps)]
    assert shares[:falls] == longer[: min(falls, steps)]  # the length is open until it falls


def test_weight_decay_follows_its_own_schedule() -> None:
    model = GPT(GPTConfig(vocab_size=20, context=8, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=16))
    optimizers = build_optimizers(model, Train(optimizer="muon", weight_decay=0.2))
    set_rate(optimizers, 1.0, 0.25)
    assert {g["weight_decay"] for o in optimizers.values() for g in o.param_groups} == {0.05, 0.0}


@pytest.mark.parametrize(
    ("kind", "base", "steady"), [("adamw", 32, True), ("adamw", None, False), ("muon", None, True)]
)
def test_one_tuning_moves_networks_of_all_widths_alike(kind: str, base: int | None, steady: bool) -> None:
    """How far three steps move what a feed-forward part gives for the inputs it began with, at width 32 and at width
    256."""
    moves = []
    for width in (32, 256):
        model = GPT(GPTConfig(vocab_size=64, context=16, layers=1, d_model=width, heads=2, kv_heads=2, d_ff=4 * width))
        model.initialise(0)
        optimizers = build_optimizers(
            model, Train(optimizer=kind, base_width=base, peak_lr=1e-3, matrix_lr=1e-3, weight_decay=0.0)
        )
        x = torch.arange(16).repeat(2, 1)
        with torch.no_grad():
            inputs = model.blocks[0].ff_norm(model.embed(x))
            before = model.blocks[0].ff.up(inputs)
        for _ in range(3):
            (model.loss(x, x + 1) / x.numel()).backward()
            for optimizer in optimizers.values():
                optimizer.step()
            model.zero_grad()
        with torch.no_grad():
            moves.append(float((model.blocks[0].ff.up(inputs) - before).square().mean().sqrt()))
    assert (0.4 < moves[1] / moves[0] < 2.5) == steady


def test_rates_by_width() -> None:
    model = GPT(GPTConfig(vocab_size=20, context=8, layers=1, d_model=64, heads=2, kv_heads=2, d_ff=16))
    groups = build_optimizers(model, Train(peak_lr=0.4, base_width=16))["adamw"].param_groups
    rates = {id(parameter): group["peak"] for group in groups for parameter in group["params"]}
    assert rates[id(model.blocks[0].ff.up.weight)] == pytest.approx(0.1)
    assert rates[id(model.norm.weight)] == pytest.approx(0.1)
    assert rates[id(model.embed.weight)] == rates[id(model.blocks[0].ff_norm.weight)] == 0.4


def test_the_outputs_multiplier_is_where_the_last_norm_begins_and_how_fast_it_moves() -> None:
    model = GPT(GPTConfig(vocab_size=20, context=8, layers=1, d_model=64, heads=2, kv_heads=2, d_ff=16))
    tokens = torch.arange(8)[None]
    model.initialise(1, 16)
    plain = model(tokens)
    model.initialise(1, 16, 3.0)
    torch.testing.assert_close(model(tokens), 3 * plain)
    for base, expected in ((16, 0.3), (None, 1.2)):
        groups = build_optimizers(model, Train(peak_lr=0.4, base_width=base, output_multiplier=3.0))[
            "adamw"
        ].param_groups
        assert [group["peak"] for group in groups if any(p is model.norm.weight for p in group["params"])] == [
            pytest.approx(expected)
        ]
    with pytest.raises(ValueError, match="output_multiplier"):
        Train(optimizer="sgd", output_multiplier=3.0)


@pytest.mark.parametrize(("kind", "base", "steady"), [("adamw", 64, True), ("muon", 64, True), ("adamw", None, False)])
def test_coordinates_are_of_one_size_at_every_width(kind: str, base: int | None, steady: bool) -> None:
    """Yang et al. 2022, appendix D.1, the coordinate check: how far a few steps move the logits and what each block
    gives, by width."""
    widths, moves = (32, 64, 128, 256), []
    tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(0))
    x, y = tokens[:, :-1], tokens[:, 1:]
    for width in widths:
        model = GPT(
            GPTConfig(
                vocab_size=64,
                context=16,
                layers=2,
                d_model=width,
                heads=width // 16,
                kv_heads=width // 16,
                d_ff=4 * width,
            )
        )
        model.initialise(0, base)
        optimizers = build_optimizers(
            model, Train(optimizer=kind, base_width=base, peak_lr=0.01, matrix_lr=0.02, weight_decay=0.0)
        )
        runs = []
        for _ in range(4):
            with torch.no_grad():
                hidden, place = model.embed(x), model._place(x, None, None, None)
                given = [hidden := block(hidden, place) for block in model.blocks]
                runs.append([*given, model(x)])
            (model.loss(x, y) / x.numel()).backward()
            for optimizer in optimizers.values():
                optimizer.step()
            model.zero_grad()
        moves.append([float((last - first).abs().mean()) for first, last in zip(runs[0], runs[-1], strict=True)])
    growth = [
        math.log(wide / narrow) / math.log(widths[-1] / widths[0])
        for narrow, wide in zip(moves[0], moves[-1], strict=True)
    ]
    assert (max(abs(exponent) for exponent in growth) < 0.25) == steady, growth
