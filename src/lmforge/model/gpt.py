"""The network: config, attention, block, model. One device, full precision, no parallel or compression code.

    tokens (B,T) ─embed─▶ x (B,T,D) ─[ x + Attention(Norm(x)) ; x + FF(Norm(x)) ] × layers─▶ Norm ─head─▶ logits (B,T,V)

Shapes: B rows, T tokens, D width (`d_model`), H heads of width E = D/H, F feed-forward width (`d_ff`), V vocabulary.
Vaswani et al. 2017, section 3; pre-normalisation as in GPT-2 (Radford et al. 2019, section 2.3). Any stage of a pipeline is this
model with layers left out: `embed` and `head` may be None.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.functions import linear_cross_entropy, relu_squared, rotate


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The shape of a network; everything else follows from it."""

    vocab_size: int
    context: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    d_ff: int
    activation: str = "relu"
    norm: str = "rmsnorm"
    positions: str = "rope"
    biases: bool = False
    qk_norm: bool = False
    ngram_rows: int = 0

    @property
    def head_width(self) -> int:
        """E = D/H."""
        return self.d_model // self.heads

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `GPTConfig(**…)` takes back."""
        return dataclasses.asdict(self)


class KVCache:
    """Keys and values of the tokens seen so far, per layer and row; rows may be of different lengths.

    keys, values: (layers, B, kv_heads, capacity, E). `lengths` (B,) counts the tokens each row holds. `recent` (B, 2) are the last
    two token ids of each row, which the n-gram embedding of the next token needs.
    """

    def __init__(self, config: GPTConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.recent = torch.zeros(rows, 2, dtype=torch.long, device=device)
        self.extent = 0  # the longest row, kept on the host so that decoding never waits for the device

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, kv_heads, T, E) at `positions` (B, T); return all up to the longest row."""
        rows = torch.arange(keys.shape[0], device=keys.device)[:, None]
        self.keys[layer].transpose(1, 2)[rows, positions] = keys.transpose(1, 2).to(self.keys.dtype)
        self.values[layer].transpose(1, 2)[rows, positions] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys[layer, :, :, : self.extent], self.values[layer, :, :, : self.extent]


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019, eq. 4), with a learned gain."""

    def __init__(self, width: int, kind: str, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias and kind == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, width)."""
        if self.kind == "layernorm":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias)
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Attention(nn.Module):
    """Causal multi-head attention: softmax(Q K^T / sqrt(E)) V, heads concatenated, times W_O (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.kv_width = config.kv_heads * config.head_width
        self.qkv = nn.Linear(config.d_model, config.d_model + 2 * self.kv_width, bias=config.biases)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.biases)
        self.q_norm = Norm(config.head_width, config.norm, False) if config.qk_norm else None
        self.k_norm = Norm(config.head_width, config.norm, False) if config.qk_norm else None

    def forward(self, x: Tensor, rotations: Tensor | None, layer: int, cache: KVCache | None, mask: Tensor | None,
                positions: Tensor | None) -> Tensor:
        """x (B,T,D), rotations (T,E/2) or (B,T,E/2) complex → (B,T,D)."""
        rows, length, width = x.shape
        config = self.config
        q, k, v = self.qkv(x).split((width, self.kv_width, self.kv_width), dim=-1)
        q = q.view(rows, length, config.heads, config.head_width)
        k = k.view(rows, length, config.kv_heads, config.head_width)
        v = v.view(rows, length, config.kv_heads, config.head_width).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        grouped = config.kv_heads != config.heads
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            assert positions is not None
            k, v = cache.write(layer, k, v, positions)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        merged: Tensor = self.out(y.transpose(1, 2).reshape(rows, length, width))
        return merged


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

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(config.d_model, config.norm, config.biases)
        self.attention = Attention(config)
        self.ff_norm = Norm(config.d_model, config.norm, config.biases)
        self.ff = FeedForward(config)

    def forward(self, x: Tensor, rotations: Tensor | None, layer: int, cache: KVCache | None, mask: Tensor | None,
                positions: Tensor | None) -> Tensor:
        """(B,T,D) → (B,T,D)."""
        x = x + self.attention(self.attention_norm(x), rotations, layer, cache, mask, positions)
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

    def forward(self, tokens: Tensor, recent: Tensor) -> Tensor:
        """tokens (B,T) and the two ids before them (B,2; 0 where there is none) → (B,T,D)."""
        padded = torch.cat((recent, tokens), dim=1)
        before, last = padded[:, :-2], padded[:, 1:-1]
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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
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

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B,T) → the normalised last layer (B,T,D). With a cache the tokens follow those it holds, and it grows by T.

        Raises:
            InputError: more tokens than learned positions reach.
        """
        rows, length = tokens.shape
        start = cache.lengths if cache else torch.zeros(rows, dtype=torch.long, device=tokens.device)
        reach = (cache.extent if cache else 0) + length
        if self.learned_positions is not None and reach > self.config.context:
            raise InputError(f"{reach} tokens: learned positions reach {self.config.context}; shorten the text or use model.positions = 'rope'")
        positions = start[:, None] + torch.arange(length, device=tokens.device) if cache else None
        assert self.embed is not None
        x = self.embed(tokens)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, cache.recent if cache else tokens.new_zeros(rows, 2))
        if self.learned_positions is not None:
            x = x + self.learned_positions(torch.arange(length, device=tokens.device) if positions is None else positions)
        mask = None
        if cache:
            assert positions is not None
            cache.extent = reach
            mask = (torch.arange(reach, device=tokens.device) <= positions[:, :, None])[:, None]
        rotations = self._rotations_at(positions, length)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotations, layer, cache, mask, positions)
        if cache:
            cache.lengths = cache.lengths + length
            cache.recent = torch.cat((cache.recent, tokens), dim=1)[:, -2:]
        result: Tensor = self.norm(x)
        return result

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B,T) → logits (B,T,V)."""
        assert self.head is not None
        logits: Tensor = self.head(self.hidden(tokens, cache))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, chunk: int = 512) -> Tensor:
        """Sum over tokens of −ln p(target), in nats; targets (B,T), −1 where a token does not count.

        The logits are made `chunk` tokens at a time and never held whole.
        """
        assert self.head is not None
        hidden = self.hidden(tokens).reshape(-1, self.config.d_model)
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
