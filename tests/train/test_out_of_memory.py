"""Memory that runs out in training ends with the plan's table, what was measured, and what to lower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmforge.errors import DoesNotFit
from lmforge.train.loop import train
from lmforge.train.out_of_memory import is_out_of_memory, out_of_memory_told
from lmforge.train.step import TrainStep
from tests.train.runs import recipe_of


def cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")


def cpu() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)  # the allocator's own refusal


def python() -> None:
    raise MemoryError


@pytest.mark.parametrize(("fails", "asked"), [(cuda, "2.00 GiB"), (cpu, f"{1 << 50} bytes"), (python, "")])
def test_the_table_of_the_plan_is_printed_with_what_was_measured(
    fails: Callable[[], None],
    asked: str,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = TrainStep.update

    def update(self: TrainStep, step: int, figures: dict[str, object]) -> None:
        usual(self, step, figures)
        if step == 2:
            fails()

    monkeypatch.setattr(TrainStep, "update", update)
    recipe = recipe_of(tiny_run, steps=5)
    with pytest.raises(DoesNotFit, match=r"out of memory in training.*lower train.micro_batch_tokens to") as caught:
        train(recipe, tiny_run / "tokens", tmp_path / "train", tmp_path / "model")
    assert asked in str(caught.value)
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    table = {row[0].rstrip(","): row[-2:] for row in rows if row and row[0] in ("weights", "optimizer", "all,")}
    # what is planned for weights and optimizer is what they take
    for name in ("weights", "optimizer"):
        planned, measured = (float(number.replace(",", "")) for number in table[name])
        assert planned == pytest.approx(measured, rel=0.05)
        assert measured > 0
    assert float(table["all"][1].replace(",", "")) > 50  # the process, MB


def test_other_errors_pass(tiny_run: Path) -> None:
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    with (
        pytest.raises(RuntimeError, match="shapes"),
        out_of_memory_told(recipe_of(tiny_run), torch.device("cpu")),
    ):
        raise RuntimeError("shapes differ")


def test_before_the_network_stands_the_plan_is_shown_alone(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(DoesNotFit, match=r"recompute|micro_batch_tokens"),
        out_of_memory_told(recipe_of(tiny_run), torch.device("cpu")),
    ):
        raise MemoryError
    assert "planned" in capsys.readouterr().err
