"""Embeddings of the last few tokens together."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NgramEmbedding(nn.Module):
    """Adds a learned vector for the last two and the last three token ids, looked up by hash: local statistics at no
    matrix cost.

    Hash embeddings: Svenstrup et al. 2017; n-gram hashing for language models: Pagnoni et al. 2024 (BLT), section
    3.2.1.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.rows = rows
        self.bigram = nn.Embedding(rows, width)
        self.trigram = nn.Embedding(rows, width)

    def forward(self, tokens: Tensor, recent: Tensor, positions: Tensor | None = None) -> Tensor:
        """tokens (B,T) and the two ids before them (B,2; 0 where there is none) → (B,T,D).

        positions (B,T), where a row packs several documents: what stands before a document's first token counts as 0.
        """
        padded = torch.cat((recent, tokens), dim=1)
        before, last = padded[:, :-2], padded[:, 1:-1]
        if positions is not None:
            before, last = before.masked_fill(positions < 2, 0), last.masked_fill(positions < 1, 0)
        # Odd multipliers spread neighbouring ids over the table; products stay far below 2^63.
        pair = last * 1_000_003 + tokens * 8_191
        result: Tensor = self.bigram(pair % self.rows) + self.trigram((before * 998_244_353 + pair * 31) % self.rows)
        return result
