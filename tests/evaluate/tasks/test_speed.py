"""The speed is that of the shared decoding loop, and says where it was measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lmforge.evaluate.task import Context
from lmforge.evaluate.tasks import speed
from tests.evaluate.conftest import CONTEXT, score_of, tiny_model


def test_median_interval_and_conditions(context_of: Callable[..., Context]) -> None:
    score = score_of("generation_speed", context_of(tiny_model()))
    rates = sorted(row["tokens_per_second"] for row in score.rows)
    assert len(rates) == score.items == speed.REPETITIONS
    assert score.value == rates[len(rates) // 2]
    assert rates[0] <= score.low <= score.value <= score.high <= rates[-1]  # type: ignore[operator]
    assert score.extra["threads"] == torch.get_num_threads()
    assert score.extra["prefill_tokens_per_second"] > 0
    assert {"processor", "threads", "device", "torch"} <= set(score.comparison_key["machine"])
    assert score.higher_is_better


def test_the_clock_counts_the_tokens_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    measured = speed.measure(tiny_model(), [0, 5, 6], new=9)
    assert measured == {"first_token_seconds": 0.5, "tokens_per_second": 8 / 2.0}


def test_nothing_is_read_twice(context_of: Callable[..., Context]) -> None:
    extra = score_of("generation_speed", context_of(tiny_model())).extra
    assert extra["prompt_tokens"] + extra["new_tokens"] <= CONTEXT
