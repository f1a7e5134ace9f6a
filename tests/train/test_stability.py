"""What is called a spike and what is not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmforge.train.stability import PATIENCE, Diverged, SkippedBatches, Stability


def restored(stability: Stability) -> Stability:
    """Through a checkpoint, into a run without changes of text."""
    again = Stability()
    again.load_state_dict(stability.state_dict())
    return again


@given(st.floats(0.01, 20), st.lists(st.floats(-0.2, 0.2), min_size=70, max_size=70))
def test_usual_losses_are_fine_and_a_hundredfold_one_is_not(level: float, noise: list[float]) -> None:
    stability = Stability()
    for step, wobble in enumerate(noise):
        assert stability.judge(step, level * (1 + wobble) * (1 + 2 * math.exp(-step / 9)), 1.0) is None
    cause = stability.judge(70, 100 * level + 1, 1.0)
    assert cause is not None
    assert "times that of the last 64 steps" in cause
    assert stability.judge(71, level, 1e9) is None  # clipping's business
    assert stability.skipped == []


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_what_is_no_number_is_never_fine(loss: float, norm: float) -> None:
    assert "the loss is" in (Stability().judge(0, loss, norm) or "")


def test_few_losses_tell_nothing_and_a_change_of_text_is_learned_anew() -> None:
    stability = Stability(changes=[20])
    assert stability.judge(0, 1.0, 1.0) is None
    assert stability.judge(1, 100.0, 1.0) is None
    stability = Stability(changes=[20])
    for step in range(20):
        stability.judge(step, 1.0, 1.0)
    assert restored(stability).judge(20, 9.0, 1.0) is not None
    assert stability.judge(20, 9.0, 1.0) is None


def test_patience_ends() -> None:
    stability = Stability()
    for step in range(PATIENCE):
        stability.check("x")
        assert stability.judge(step, math.nan, 1.0)
    with pytest.raises(Diverged) as caught:
        restored(stability).check("why")
    assert (caught.value.steps, str(caught.value)) == ([*range(PATIENCE)], "why")


def test_excluded_steps_survive_a_restart(tmp_path: Path) -> None:
    excluded = SkippedBatches(tmp_path / "excluded.json")
    excluded.add([4, 5], write=True)
    excluded.add([9], write=True)
    again = SkippedBatches(tmp_path / "excluded.json")
    assert (sorted(again.steps), again.returns) == ([4, 5, 9], 2)
