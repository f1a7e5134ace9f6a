"""The network: config, block, model. One device, full precision, no parallel or compression code.

    tokens (B,T) ─embed─▶ x (B,T,D) ─[ x + Attention(Norm(x)) ; x + FF(Norm(x)) ] × layers─▶ Norm ─head─▶ logits (B,T,V)

Shapes: B rows, T tokens, D width (`d_model`), H heads of width E = D/H, F feed-forward width (`d_ff`), V vocabulary.
Vaswani et al. 2017, section 3; pre-normalisation as in GPT-2 (Radford et al. 2019, section 2.3). Any stage of a pipeline is this
model with layers left out: `embed` and `head` may be None.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.attention import Attention, KVCache, Packing, Place
from lmforge.model.config import GPTConfig
from lmforge.model.functions import Norm, linear_cross_entropy, relu_squared

__all__ = ["GPT", "Block", "GPTConfig", "KVCache"]


class FeedForward(nn.Module):
    """FF(x) = act(x W1 + b1) W2 + b2, act = max(0, ·) by default (Vaswani et al. 2017, eq. 2); relu2: So et al. 2021."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.biases)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.biases)

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,D) → (B,T,D)."""
        hidden = self.up(x)
        if self.activation == "relu":
            hidden = F.relu(hidden)
        elif self.activation == "relu2":
            hidden = relu_squared(hidden)
        else:
            hidden = F.gelu(hidden)
        result: Tensor = self.down(hidden)
        return result


class Block(nn.Module):
    """x + Attention(Norm(x)), then x + FF(Norm(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config.d_model, config.norm, config.biases)
        self.attention = Attention(config, layer)
        self.ff_norm = Norm(config.d_model, config.norm, config.biases)
        self.ff = FeedForward(config)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """(B,T,D) → (B,T,D)."""
        x = x + self.attention(self.attention_norm(x), place)
        result: Tensor = x + self.ff(self.ff_norm(x))
        return result


class NgramEmbedding(nn.Module):
    """Adds a learned vector for the last two and the last three token ids, looked up by hash: local statistics at no matrix cost.

    Hash embeddings: Svenstrup et al. 2017; n-gram hashing for language models: Pagnoni et al. 2024 (BLT), section 3.2.1.
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


class GPT(nn.Module):
    """A decoder-only Transformer with tied input and output embeddings."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Embedding | None = nn.Embedding(config.vocab_size, config.d_model)
        self.ngrams = NgramEmbedding(config.ngram_rows, config.d_model) if config.ngram_rows else None
        self.learned_positions = nn.Embedding(config.context, config.d_model) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = Norm(config.d_model, config.norm, config.biases)
        self.head: nn.Linear | None = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head.weight = self.embed.weight
        self.rotations: Tensor
        self.register_buffer("rotations", _rotations(config), persistent=False)

    def initialise(self, seed: int) -> None:
        """GPT-2's initialisation: normal, std 0.02; projections into the residual stream scaled by 1/sqrt(2·layers)."""
        generator = torch.Generator(device=next(self.parameters()).device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                scale = 1 / math.sqrt(2 * self.config.layers) if name.endswith(("attention.out.weight", "ff.down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale, generator=generator)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """tokens (B,T) → the normalised last layer (B,T,D). With a cache the tokens follow those it holds, and it grows by T.

        documents (B,T), where rows pack several texts: a run of equal numbers is one document, which sees and counts only itself.

        Raises:
            InputError: more tokens than learned positions reach.
        """
        assert cache is None or documents is None
        rows, length = tokens.shape
        reach = (cache.extent if cache else 0) + length
        if self.learned_positions is not None and reach > self.config.context:
            raise InputError(f"{reach} tokens: learned positions reach {self.config.context}; shorten the text or use model.positions = 'rope'")
        packing = None if documents is None else Packing(documents)
        positions = cache.lengths[:, None] + torch.arange(length, device=tokens.device) if cache else None
        within = packing.positions if packing else positions
        assert self.embed is not None
        x = self.embed(tokens)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, cache.recent if cache else tokens.new_zeros(rows, 2), packing.positions if packing else None)
        if self.learned_positions is not None:
            x = x + self.learned_positions(torch.arange(length, device=tokens.device) if within is None else within)
        mask = None
        if cache:
            assert positions is not None
            cache.extent = reach
            mask = (torch.arange(reach, device=tokens.device) <= positions[:, :, None])[:, None]
        place = Place(self._rotations_at(positions, length), packing, cache, positions, mask)
        for block in self.blocks:
            x = block(x, place)
        if cache:
            cache.lengths = cache.lengths + length
            cache.recent = torch.cat((cache.recent, tokens), dim=1)[:, -2:]
        result: Tensor = self.norm(x)
        return result

    def forward(self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """tokens (B,T) → logits (B,T,V)."""
        assert self.head is not None
        logits: Tensor = self.head(self.hidden(tokens, cache, documents))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None, chunk: int = 512) -> Tensor:
        """Sum over tokens of −ln p(target), in nats; targets (B,T), −1 where a token does not count; documents as in `hidden`.

        The logits are made `chunk` tokens at a time and never held whole.
        """
        assert self.head is not None
        hidden = self.hidden(tokens, documents=documents).reshape(-1, self.config.d_model)
        return linear_cross_entropy(hidden, self.head.weight, targets.reshape(-1), chunk)

    def _rotations_at(self, positions: Tensor | None, length: int) -> Tensor | None:
        table = self.rotations
        if table.numel() == 0:
            return None
        if positions is None and length <= table.shape[0]:
            return table[:length]
        last = length if positions is None else int(positions.max()) + 1
        if last > table.shape[0]:  # longer than trained: the same angles, further on
            table = self.rotations = _rotations(dataclasses.replace(self.config, context=2 * last)).to(table.device)
        return table[:length] if positions is None else table[positions]


def _rotations(config: GPTConfig) -> Tensor:
    """RoPE's e^{i·t·θ_j}, (context, E/2) complex: θ_j = 10000^{-2j/E} (Su et al. 2021, eq. 15). Empty without RoPE."""
    if config.positions != "rope":
        return torch.empty(0)
    half = config.head_width // 2
    theta = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(config.context, dtype=torch.float64)[:, None] * theta
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
