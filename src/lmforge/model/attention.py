"""Causal multi-head attention: projections around a mixer of one of several kinds.

    x (B,T,D) ─qkv─▶ (B,T,W+2K) ─documents apart─▶ q, k, v ─norm─▶ mixer ─documents together─▶ (B,T,W) ─out─▶ (B,T,D)

Shapes as in `gpt`; W = heads·E, the width of queries (D where a layer has all its heads); K = kv_heads·E, that of keys
and of values. The number of heads is taken from the width that `qkv` gives, so a layer whose projections something has
made narrower (heads that other devices hold, heads that were pruned) runs as it is. The kinds of mixer:
`softmax_attention` (full, window, strided, pooled, sparse), `lsh`, `linear_attention`. A recipe may mix kinds, layer
by layer.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from lmforge.model.branches import Branches
from lmforge.model.cache import ForwardContext, KVCache, LayerCache
from lmforge.model.config import GPTConfig
from lmforge.model.linear_attention import Linear
from lmforge.model.low_rank import linear
from lmforge.model.lsh import LSH
from lmforge.model.norms import Norm, norm_of
from lmforge.model.softmax_attention import Softmax, saves_attention

__all__ = ["Attention", "ForwardContext", "KVCache", "Mixer", "Softmax"]


class Mixer(Protocol):
    """One kind of attention: q (B,T,H,E), k and v (B,T,kv_heads,E), none rotated yet → (B,H,T,E)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """Rows that are whole texts. `known` (B,H,T,E): the result, where only its gradient is wanted."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor, forward_ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """Rows that go on from what `cache` holds, which takes them in."""

    def new_cache(self, q: Tensor, k: Tensor, capacity: int, dtype: torch.dtype) -> LayerCache:
        """An empty cache for texts of up to `capacity` tokens, for as many rows and heads as q and k have."""


class Attention(nn.Module):
    """Causal multi-head attention: softmax(Q K^T / sqrt(E)) V, heads concatenated, times W_O (Vaswani et al. 2017, eq.
    1)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        kind, shape = config.kind_of(layer), config.shape_of(layer)
        self.shared = kind == "lsh"  # queries are keys too
        self.saves_attention = saves_attention(config, kind)
        self.head_width, self.groups = config.head_width, shape.heads // shape.kv_heads
        width, kv_width = shape.heads * self.head_width, shape.kv_heads * self.head_width
        projected = width + (1 if self.shared else 2) * kv_width
        self.qkv = linear(config.d_model, projected, config.has_qkv_biases, shape.qkv_rank)
        self.out = linear(width, config.d_model, config.has_out_biases, shape.out_rank)
        normed, self.whole_norm = config.qk_norm or config.qk_norm_full, config.qk_norm_full
        q_width, k_width = (width, kv_width) if self.whole_norm else (self.head_width, self.head_width)
        self.q_norm = norm_of(config, q_width, False) if normed else None
        self.k_norm = norm_of(config, k_width, False) if normed and not self.shared else None
        # scores are divided by √E as they are made: queries bring what is to be another scale
        self.sharper = config.attention_scale * math.sqrt(self.head_width) if config.attention_scale else None
        self.local = kind == "window"  # RoPE may be another one
        self.mixer: LSH | Linear | Softmax = (
            LSH(config, layer)
            if kind == "lsh"
            else Linear(config, shape)
            if kind == "linear"
            else Softmax(config, kind, shape.kv_heads)
        )

    def forward(self, x: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """x (B,T,D) → (B,T,D)."""
        merged: Tensor = self.out(self.mixed(self.qkv(x), forward_ctx))
        return merged

    def mixed(self, qkv: Tensor, forward_ctx: ForwardContext, known: Tensor | None = None) -> Tensor:
        """What `out` takes: queries, keys and values (B,T,W+2K) → (B,T,W). `known`: the result, where only its gradient
        is wanted."""
        if self.local and forward_ctx.local is not None:
            forward_ctx = forward_ctx.local
        if forward_ctx.packing is None:
            return self._attend(qkv, forward_ctx.rotations, forward_ctx, known)
        if isinstance(forward_ctx.packing, Branches):
            return forward_ctx.packing.mixed(self, qkv, forward_ctx)
        parts = forward_ctx.packing.apart(qkv)
        results = [None] * len(parts) if known is None else forward_ctx.packing.apart(known)
        rotations = [
            None if forward_ctx.rotations is None else forward_ctx.rotations[: part.shape[1]] for part in parts
        ]
        mixed = [
            self._attend(part, turns, forward_ctx, result)
            for part, turns, result in zip(parts, rotations, results, strict=True)
        ]
        return forward_ctx.packing.together(mixed)

    def whole_rows(self, qkv: Tensor, rotations: Tensor | None, forward_ctx: ForwardContext) -> Tensor:
        """(B,T,W+2K) → (B,T,W): rows that are whole texts, whatever the pass is made of."""
        return self._attend(qkv, rotations, forward_ctx)

    def projected(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `qkv` gives (B,T,W+2K) → q (B,T,H,E), k and v (B,T,kv_heads,E), normalised, not rotated."""
        heads_BTHE = qkv.unflatten(-1, (-1, self.head_width))
        kv_heads = heads_BTHE.shape[2] // (self.groups + (1 if self.shared else 2))
        q, *rest = heads_BTHE.split((self.groups * kv_heads, *[kv_heads] * (1 if self.shared else 2)), dim=2)
        *keys, v = rest
        if self.q_norm is not None:
            q = self._normed(q, self.q_norm)
        k = self._normed(keys[0], self.k_norm) if self.k_norm is not None else keys[0] if keys else q
        if self.sharper is not None:
            q = q * self.sharper
        return q, k, v

    def _attend(
        self, qkv: Tensor, rotations: Tensor | None, forward_ctx: ForwardContext, known: Tensor | None = None
    ) -> Tensor:
        """(B,T,W+2K) → (B,T,W), each row a text of its own."""
        q, k, v = self.projected(qkv)
        cache = forward_ctx.cache
        if known is not None and self.q_norm is None and rotations is not None:
            # the gradient needs no more of the projections than this, and a view would keep all of them
            v = v.contiguous()
        if cache is None:
            result = None if known is None else known.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            y: Tensor = self.mixer(q, k, v, rotations, result)
        else:
            if self.layer not in cache.layers:
                cache.layers[self.layer] = self.mixer.new_cache(q, k, cache.capacity, cache.dtype)
            y = self.mixer.decode(q, k, v, forward_ctx, cache.layers[self.layer])
        return y.transpose(1, 2).flatten(2)

    def _normed(self, x: Tensor, norm: Norm) -> Tensor:
        """Queries or keys (B,T,heads,E), each head by itself or all together → the same shape."""
        normed: Tensor = norm(x.flatten(2)).view(x.shape) if self.whole_norm else norm(x)
        return normed
