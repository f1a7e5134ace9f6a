"""What is called a spike and what is not; where numbers first stop being finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.train.stability import PATIENCE, Diverged, SkippedBatches, Stability, first_non_finite

CONFIG = GPTConfig(vocab_size=20, context=8, layers=2, d_model=8, heads=2, kv_heads=2, d_ff=16)


def network() -> tuple[GPT, torch.Tensor]:
    model = GPT(CONFIG)
    model.initialise(0)
    return model, torch.arange(8)[None]


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
    assert Stability(stability.state).judge(20, 9.0, 1.0) is not None
    assert stability.judge(20, 9.0, 1.0) is None


def test_patience_ends() -> None:
    stability = Stability()
    for step in range(PATIENCE):
        stability.check("x")
        assert stability.judge(step, math.nan, 1.0)
    with pytest.raises(Diverged) as caught:
        Stability(stability.state).check("why")
    assert (caught.value.steps, str(caught.value)) == ([*range(PATIENCE)], "why")


def test_excluded_steps_survive_a_restart(tmp_path: Path) -> None:
    excluded = SkippedBatches(tmp_path / "excluded.json")
    excluded.add([4, 5], write=True)
    excluded.add([9], write=True)
    again = SkippedBatches(tmp_path / "excluded.json")
    assert (sorted(again.steps), again.returns) == ([4, 5, 9], 2)


def test_the_first_layer_is_named() -> None:
    model, x = network()
    loss = lambda: model.loss(x, x)  # noqa: E731
    assert first_non_finite(model, loss) == "nothing, when its rows are computed alone"
    hook = model.blocks[1].ff.up.register_forward_hook(lambda _m, _i, output: output / 0)
    assert first_non_finite(model, loss) == "output of blocks.1.ff.up"
    hook.remove()
    hook = model.blocks[0].attention.out.weight.register_hook(lambda gradient: gradient * math.inf)
    assert first_non_finite(model, loss) == "gradient of blocks.0.attention.out.weight"
    hook.remove()
    assert first_non_finite(model, lambda: model.loss(x, x) * math.nan) == "the loss itself"
    with torch.no_grad():
        model.blocks[0].ff.down.weight[0, 0] = math.inf
    assert first_non_finite(model, loss) == "weights blocks.0.ff.down.weight"
    assert all(parameter.grad is None for parameter in model.parameters())
