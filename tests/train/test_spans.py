"""A network that points: it learns where an answer stands and that there is none, and padding tells it nothing."""

from __future__ import annotations

import math
import random

import pytest
import torch

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Lora
from lmforge.train.classifier import Fit
from lmforge.train.spans import Pointed, SpanReader, fit_spans

CONFIG = GPTConfig(vocab_size=40, context=24, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64)


def network() -> GPT:
    model = GPT(CONFIG)
    model.initialise(1)
    return model


def rows(count: int) -> list[Pointed]:
    """The answer is from token 7 to token 8, where these stand in the context."""
    rng = random.Random(3)
    made = []
    for number in range(count):
        context = [rng.randrange(9, 40) for _ in range(rng.randint(6, 12))]
        tokens = [1, 2, *context, 3]
        start = end = len(tokens) - 1
        if number % 2:
            at = rng.randrange(len(context) - 2)
            context[at], context[at + 2] = 7, 8
            tokens, start, end = [1, 2, *context, 3], at + 2, at + 4
        made.append(Pointed(tokens, 2, len(tokens) - 1, start, end))
    return made


@pytest.mark.parametrize(("lora", "precision"), [(None, "fp32"), (Lora(rank=4), "bf16")])
def test_answers_are_pointed_at(lora: Lora | None, precision: str) -> None:
    model, examples = network(), rows(96)
    names = set(model.state_dict())
    rate = 1e-2 if lora else 5e-3
    fit = Fit(outputs=0, lora=lora, epochs=10, batch=16, peak_lr=rate, precision=precision)
    reader, figures = fit_spans(model, examples, fit)
    assert figures["loss"] < 0.5
    right = 0
    for row, scores in zip(examples, reader.scores(examples), strict=True):
        start, end = max(scores.starts), max(scores.ends)
        if row.start == len(row.tokens) - 1:
            right += scores.none > start + end
        else:
            right += (scores.starts.index(start), scores.ends.index(end)) == (row.start - 2, row.end - 2)
    assert right > 80
    assert set(model.state_dict()) == names  # an ordinary network
    assert all(each.dtype == torch.float32 for each in model.state_dict().values() if each.is_floating_point())


def test_only_the_context_and_the_last_place_are_pointed_at() -> None:
    reader, (short, long) = SpanReader(network()).eval(), (rows(9)[0], max(rows(9), key=lambda row: len(row.tokens)))
    torch.nn.init.normal_(reader.wanted.weight)
    alone, together = reader([short]), reader([short, long])
    size = len(short.tokens)
    torch.testing.assert_close(together[0, :, :size], alone[0], rtol=1e-5, atol=1e-5)
    allowed = (alone[0, 0] > -math.inf).nonzero()[:, 0].tolist()
    assert allowed == [*range(short.first, short.stop), size - 1]
    assert bool((together[0, :, size:] == -math.inf).all())
    (scores,) = reader.scores([short])
    assert len(scores.starts) == short.stop - short.first
    assert scores.none == pytest.approx(float(alone[0, :, size - 1].sum().detach()), rel=1e-5)
