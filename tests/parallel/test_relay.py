"""A pipeline scores and decodes like the network that it is."""

from __future__ import annotations

from typing import Any

import torch
from bench.ranks import on_ranks
from torch import Tensor

from lmforge.generate.score import token_nats
from lmforge.model.cache import KVCache
from tests.parallel.passes import begun, laid_out, rows_of, small

CONFIG = small(ngram_rows=20, attention=("full", "window"), window=5)


def decoded(network: Any, prompt: Tensor) -> list[int]:
    """Six tokens after a prompt (1,T), the likeliest each time."""
    cache, tokens = KVCache(1, 20, prompt.device), prompt
    found = []
    for _ in range(6):
        with torch.no_grad():
            tokens = network(tokens, cache)[:, -1:].argmax(-1)
        found.append(int(tokens))
    return found


def scores_and_text() -> tuple[Any, list[int]]:
    layout, _ = laid_out(CONFIG, {"pipeline": 2}, pipeline_schedule="zbv")
    inputs, targets, documents = rows_of(0)
    scores = layout.forward(lambda network, _: token_nats(network, inputs, targets, documents=documents), range(7))  # type: ignore[arg-type]
    text = layout.forward(lambda network, _: decoded(network, inputs[:1, :9]), range(1))
    assert layout.forward(lambda *_: None, range(0)) == []
    return scores[0].tolist(), text[0]


def test_every_process_has_the_scores_and_the_text() -> None:
    model = begun(CONFIG).eval()
    inputs, targets, documents = rows_of(0)
    expected, text = token_nats(model, inputs, targets, documents=documents), decoded(model, inputs[:1, :9])
    for scores, found in on_ranks(2, scores_and_text):
        assert torch.allclose(torch.as_tensor(scores), expected, atol=1e-5)
        assert found == text
