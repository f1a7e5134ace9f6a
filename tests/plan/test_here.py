"""Steps foretold from what a machine was measured to do: amounts of work, ranks, what is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lmforge.model.config import GPTConfig
from lmforge.plan.cost import training_flops_per_token
from lmforge.plan.here import KINDS, Speeds, amounts, keep_speeds, kept_speeds, pass_seconds, step_seconds

CONFIG = GPTConfig(vocab_size=512, context=64, layers=4, d_model=64, heads=4, kv_heads=4, d_ff=256)
SPEEDS = Speeds(dict.fromkeys(KINDS, 1e-10), 1e-9, 1e-3, 1.2, 1e-4, 1e-9, 400_000_000, 2)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "full"), ({"attention": ("linear",)}, "linear"), ({"attention": ("window",), "window": 16}, "banded"),
     ({"attention": ("lsh",), "lsh_span": 16}, "lsh")],
)  # fmt: skip
def test_operations_are_those_of_the_cost_formulas(changes: dict[str, object], kind: str) -> None:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    found = amounts(config, 128)
    assert set(found) == set(KINDS)
    operations = sum(found[name] for name in ("products", "full", "banded", "linear", "lsh"))
    assert operations == pytest.approx(128 * training_flops_per_token(config, 64), rel=1e-6)
    assert found[kind] > 0
    assert sum(found[other] for other in ("full", "banded", "linear", "lsh")) == found[kind]


def test_recomputation_and_experts_are_more_work() -> None:
    plain = amounts(CONFIG, 128)
    again = amounts(dataclasses.replace(CONFIG, recompute=True), 128)
    assert again["products"] > plain["products"]
    assert again["activations"] > plain["activations"]
    assert plain["experts"] == 0 < amounts(dataclasses.replace(CONFIG, experts=4), 128)["experts"]


def test_ranks_share_rows_and_cores() -> None:
    def total(rows: int, ranks: int = 1, replicas: int = 1) -> float:
        return sum(step_seconds(SPEEDS, CONFIG, rows, rows, ranks, replicas).values())

    assert step_seconds(SPEEDS, CONFIG, 8, 8)["exchange"] == 0
    two = step_seconds(SPEEDS, CONFIG, 8, 8, ranks=2)
    assert two["passes"] == pytest.approx(1.2 * pass_seconds(SPEEDS, CONFIG, 8 * 64))
    assert two["exchange"] > 0
    # four ranks on two cores take turns
    assert step_seconds(SPEEDS, CONFIG, 8, 8, ranks=4)["passes"] == pytest.approx(2 * two["passes"])
    replicas = step_seconds(SPEEDS, CONFIG, 8, 8, replicas=2)["passes"]
    assert replicas == pytest.approx(1.2 * pass_seconds(SPEEDS, CONFIG, 4 * 64))
    assert total(8) < total(16)
    adamw, muon = (step_seconds(SPEEDS, CONFIG, 8, 8, optimizer=each)["update"] for each in ("adamw", "muon"))
    assert muon > adamw


def test_micro_batches_are_passes_of_their_own() -> None:
    whole, parts = (step_seconds(SPEEDS, CONFIG, 8, size)["passes"] for size in (8, 2))
    constant = SPEEDS.seconds["passes"] + SPEEDS.seconds["blocks"] * 4
    assert parts - whole == pytest.approx(3 * constant, rel=1e-6)


def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_speeds() is None
    keep_speeds(SPEEDS)
    assert kept_speeds() == SPEEDS
    next((tmp_path / "lmforge").glob("machine-*")).write_text("{}")
    assert kept_speeds() is None
