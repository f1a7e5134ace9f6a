"""A network that judges texts: it learns, stays an ordinary network, and padding tells it nothing."""

from __future__ import annotations

import random

import pytest
import torch

from lmforge.errors import InputError
from lmforge.model.gpt import GPT, GPTConfig
from lmforge.recipe import Lora
from lmforge.train.classifier import Classifier, Fit, Judged, fit_classifier

CONFIG = GPTConfig(vocab_size=40, context=24, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=64)


def network() -> GPT:
    model = GPT(CONFIG)
    model.initialise(1)
    return model


def examples(count: int, degree: bool = False) -> list[Judged]:
    """Whether token 7 stands in a row, or how often (0 to 5)."""
    rng = random.Random(2)
    made = []
    for _ in range(count):
        times = rng.randrange(6) if degree else rng.randrange(2)
        row = [7] * times + [rng.randrange(8, 40) for _ in range(rng.randint(4, 12))]
        rng.shuffle(row)
        made.append(Judged([1, *row, 2], float(times)))
    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_learn_and_are_merged(precision: str) -> None:
    model, rows = network(), examples(96)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit = Fit(outputs=2, lora=Lora(rank=4), epochs=8, batch=16, peak_lr=1e-2, precision=precision)
    classifier, figures = fit_classifier(model, rows, fit)
    judged = classifier.judged(rows, False)
    assert sum(max((0, 1), key=each.__getitem__) == row.label for each, row in zip(judged, rows, strict=True)) > 88
    after = model.state_dict()
    assert set(after) == set(before)  # an ordinary network
    assert all(tensor.dtype == torch.float32 for tensor in after.values() if tensor.is_floating_point())
    assert torch.equal(after["embed.weight"], before["embed.weight"])
    assert not torch.equal(after["blocks.0.ff.up.weight"], before["blocks.0.ff.up.weight"])
    assert figures["steps"] == 48


def test_a_degree_is_learned_and_words_share_one_between_them() -> None:
    rows = examples(160, degree=True)
    fit = Fit(outputs=1, degree=True, epochs=8, batch=16, peak_lr=5e-3, precision="fp32")
    classifier, _ = fit_classifier(network(), rows, fit)
    given = torch.tensor([each[0] for each in classifier.judged(rows, True)])
    right = torch.tensor([row.label for row in rows])
    assert torch.corrcoef(torch.stack((given, right)))[0, 1] > 0.8
    words = Fit(outputs=6, degree=True, words=(30, 31, 32, 33, 34, 35), epochs=2, batch=16, precision="fp32")
    _, figures = fit_classifier(network(), [*rows, Judged([1, 2], 2.5)], words)
    assert figures["loss"] < 2.0


def test_padding_tells_nothing() -> None:
    classifier = Classifier(network().eval(), Fit(outputs=3))
    rows = examples(6)
    together = classifier.judged(rows, False)
    for row, own in zip(rows, together, strict=True):
        assert classifier.judged([row], False)[0] == pytest.approx(own, abs=1e-5)


def test_too_long_and_none_are_refused() -> None:
    with pytest.raises(InputError, match="the longest of 30 tokens: the model reads 24"):
        fit_classifier(network(), [Judged([1] * 30, 0)], Fit(outputs=2))
    with pytest.raises(InputError, match="0 examples"):
        fit_classifier(network(), [], Fit(outputs=2))


def test_time_ends_it() -> None:
    fit = Fit(outputs=2, epochs=1000, batch=4, precision="fp32", most_seconds=0.5)
    _, figures = fit_classifier(network(), examples(8), fit)
    assert figures["steps"] < 2000
