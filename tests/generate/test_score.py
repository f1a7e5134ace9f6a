"""Token scores agree with the training loss and leave out what does not count."""

from __future__ import annotations

import torch

from lmforge.compress.quantize import quantize
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPT, GPTConfig


def test_sum_equals_the_loss_and_chunks_do_not_matter() -> None:
    model = GPT(GPTConfig(vocab_size=50, context=16, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32))
    model.initialise(0)
    torch.manual_seed(0)
    tokens, targets = torch.randint(50, (3, 16)), torch.randint(50, (3, 16))
    targets[0, :5] = -1
    nats = token_nats(model, tokens, targets, chunk=7)
    assert nats.shape == targets.shape
    assert torch.all(nats[0, :5] == 0)
    assert torch.allclose(nats.sum(), model.loss(tokens, targets), rtol=1e-5)
    assert torch.allclose(nats, token_nats(model, tokens, targets, chunk=1000), atol=1e-5)


def test_a_quantised_model_is_scored_by_its_own_logits() -> None:
    model = GPT(GPTConfig(vocab_size=50, context=16, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32))
    model.initialise(0)
    small, _ = quantize(model)
    torch.manual_seed(0)
    tokens, targets = torch.randint(50, (2, 16)), torch.randint(50, (2, 16))
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(small(tokens).flatten(0, 1), targets.flatten(), reduction="none")
    assert torch.allclose(token_nats(small, tokens, targets).flatten(), expected, atol=1e-5)
