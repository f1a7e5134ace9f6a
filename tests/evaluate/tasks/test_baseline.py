"""The baseline sees the training split, is scored on the documents of bits_per_byte, and is set against the models."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lmforge.corpus.build import read_documents
from lmforge.corpus.ngram import KneserNey
from lmforge.evaluate.task import Context
from lmforge.evaluate.tasks.baseline import MODIFIED, ORDER
from tests.evaluate.conftest import held_out_of, score_of, tiny_model


def test_same_documents_same_figures_as_the_model_itself(context_of: Callable[..., Context]) -> None:
    context = context_of(None)
    score = score_of("kneser_ney", context)
    model = KneserNey.train((d["text"].encode() for d in read_documents(context.corpus_dir, "train")), ORDER, MODIFIED)
    bits, size = model.bits_per_byte(d["text"].encode() for d in read_documents(context.corpus_dir, "test"))
    assert score.value == pytest.approx(bits)
    assert (score.extra["bytes"], score.items) == (size, len(held_out_of(context).documents))
    assert score.low < score.value < score.high  # type: ignore[operator]
    assert score.extra["against"] == {}


@pytest.mark.parametrize("overrides", [(), ("evaluate.max_tokens=1500",)])
def test_set_against_each_model(context_of: Callable[..., Context], overrides: tuple[str, ...]) -> None:
    context = context_of(tiny_model(seed=None), *overrides)
    context.scores["bits_per_byte"] = {"model": score_of("bits_per_byte", context)}
    network = context.scores["bits_per_byte"]["model"]
    score = score_of("kneser_ney", context)
    found = score.extra["against"]["model"]
    assert [row["id"] for row in score.rows] == [row["id"] for row in network.rows]
    assert network.value is not None
    assert score.value is not None
    assert found["ratio"] == pytest.approx(network.value / score.value)
    assert found["low"] <= found["ratio"] <= found["high"]
    assert f"model needs {100 * (found['ratio'] - 1):.1f}% more bits per byte" in found["words"]
    assert math.isfinite(found["ratio"])


def test_a_better_model_needs_fewer(context_of: Callable[..., Context]) -> None:
    context = context_of(tiny_model(seed=None))
    context.scores["bits_per_byte"] = {"oracle": score_of("bits_per_byte", context)}
    for row in context.scores["bits_per_byte"]["oracle"].rows:
        row["bits"] = 0.5 * row["bits"] / 10
    assert "oracle needs" in (words := score_of("kneser_ney", context).extra["against"]["oracle"]["words"])
    assert "fewer" in words
