"""How likely a text is under a model, token by token; whole and compressed models alike."""

from __future__ import annotations

import torch
from torch import Tensor

from lmforge.model.gpt import GPT


@torch.inference_mode()
def token_nats(
    model: GPT,
    tokens: Tensor,
    targets: Tensor,
    chunk: int = 512,
    documents: Tensor | None = None,
    images: Tensor | None = None,
) -> Tensor:
    """−ln p(target) of each token, in nats: tokens and targets (B,T) → (B,T), 0 where a target is negative (not
    counted). `documents` (B,T), where rows pack several texts, and `images`, as in `GPT.hidden`.

    Goes through `model.head`, so it needs no floating-point weight and scores exactly what decoding would use. The
    logits are made `chunk` tokens at a time and never held whole.
    """
    hidden = model.hidden(tokens, documents=documents, images=images).flatten(0, 1)
    wanted = targets.flatten()
    counted = (wanted >= 0).nonzero()[:, 0]
    if 2 * len(counted) < len(wanted):  # most are questions and padding
        nats = torch.zeros(wanted.shape, dtype=torch.float32, device=hidden.device)
        nats[counted] = _nats(model, hidden[counted], wanted[counted], chunk)
        return nats.view(targets.shape)
    return _nats(model, hidden, wanted, chunk).view(targets.shape)


def _nats(model: GPT, hidden: Tensor, wanted: Tensor, chunk: int) -> Tensor:
    """hidden (N,D), targets (N,) → −ln p (N,), 0 where a target is negative."""
    assert model.head is not None
    nats = torch.zeros(wanted.shape, dtype=torch.float32, device=hidden.device)
    for start in range(0, len(wanted), chunk):
        piece = wanted[start : start + chunk]
        log_p = torch.log_softmax(model.head(hidden[start : start + chunk]).float(), dim=-1)
        nats[start : start + chunk] = -log_p.gather(1, piece.clamp(min=0)[:, None])[:, 0] * (piece >= 0)
    return nats
