"""Causal multi-head attention, documents kept apart, and the keys and values kept for decoding.

    x (B,T,D) ─qkv─▶ (B,T,D+2K) ─documents apart─▶ q, k, v ─norm, rotate─▶ softmax(Q Kᵀ/√E) V ─documents together─▶ out ─▶ (B,T,D)

Shapes as in `gpt`; K = kv_heads·E, the width of keys and of values.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.config import GPTConfig
from lmforge.model.functions import Norm, rotate


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


class _Rearrange(torch.autograd.Function):
    """x[index], with a gradient that gathers too: `back` says where each entry of x went. Entries that `empty` marks take nothing back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, empty: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, empty)
        return x[index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back, empty = ctx.saved_tensors
        result = gradient[back]
        return (result if empty is None else result.masked_fill_(empty[:, None], 0)), None, None, None


class Packing:
    """The documents of packed rows, each moved to a row of its own, so that no attention of any kind can cross from one to another.

    Documents of like length stand together in one batch, the shorter ones padded on the right, where causal attention never looks: at
    most twice the tokens. What a document gives depends on no other document's tokens, to the last bit.
    """

    def __init__(self, documents: Tensor) -> None:
        """documents (B,T): a run of equal numbers within a row is a document."""
        rows, length = documents.shape
        device = documents.device
        begins = torch.ones(rows, length, dtype=torch.bool, device=device)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = begins.flatten().nonzero()[:, 0]
        lengths = torch.diff(starts, append=starts.new_tensor([rows * length]))
        number = begins.flatten().cumsum(0) - 1
        self.positions = (torch.arange(rows * length, device=device) - starts[number]).view(rows, length)
        sizes = (lengths - 1).clamp(min=15).log2().floor()  # documents of up to 16, 32, 64, … tokens
        self.shapes: list[tuple[int, int]] = []
        indices, paddings = [], []
        for size in sizes.unique().tolist():
            chosen = (sizes == size).nonzero()[:, 0]
            offsets = torch.arange(int(lengths[chosen].max()), device=device)
            padding = offsets >= lengths[chosen, None]
            indices.append((starts[chosen, None] + offsets).masked_fill(padding, 0).flatten())
            paddings.append(padding.flatten())
            self.shapes.append((len(chosen), len(offsets)))
        self.slots, self.padding = torch.cat(indices), torch.cat(paddings)  # slot → its token; which slots are padding
        self.tokens = torch.empty(rows * length, dtype=torch.long, device=device)  # token → its slot
        self.tokens[self.slots[~self.padding]] = (~self.padding).nonzero()[:, 0]
        self.rows = rows

    def apart(self, x: Tensor) -> list[Tensor]:
        """(B,T,W) → (documents, their length, W), one for each group of like length."""
        flat: Tensor = _Rearrange.apply(x.flatten(0, 1), self.slots, self.tokens, None)  # type: ignore[no-untyped-call]
        parts = flat.split([count * length for count, length in self.shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def together(self, parts: list[Tensor]) -> Tensor:
        """What `apart` gave → (B,T,W)."""
        flat = torch.cat([part.flatten(0, 1) for part in parts])
        joined: Tensor = _Rearrange.apply(flat, self.tokens, self.slots, self.padding)  # type: ignore[no-untyped-call]
        return joined.view(self.rows, -1, flat.shape[-1])


@dataclasses.dataclass
class Place:
    """Where the tokens of one pass stand; the same for all layers.

    rotations: (T,E/2) or (B,T,E/2) complex, of the tokens' positions (with `packing`: of a row's first T positions); positions (B,T)
    and mask (B,1,T,extent) where there is a cache.
    """

    rotations: Tensor | None
    packing: Packing | None = None
    cache: KVCache | None = None
    positions: Tensor | None = None
    mask: Tensor | None = None


class Attention(nn.Module):
    """Causal multi-head attention: softmax(Q K^T / sqrt(E)) V, heads concatenated, times W_O (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.kv_width = config.kv_heads * config.head_width
        self.qkv = nn.Linear(config.d_model, config.d_model + 2 * self.kv_width, bias=config.biases)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.biases)
        self.q_norm = Norm(config.head_width, config.norm, False) if config.qk_norm else None
        self.k_norm = Norm(config.head_width, config.norm, False) if config.qk_norm else None

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """x (B,T,D) → (B,T,D)."""
        qkv = self.qkv(x)
        if place.packing is None:
            y = self._attend(qkv, place.rotations, place)
        else:
            parts = place.packing.apart(qkv)
            rotations = [None if place.rotations is None else place.rotations[: part.shape[1]] for part in parts]
            y = place.packing.together([self._attend(part, turns, place) for part, turns in zip(parts, rotations, strict=True)])
        merged: Tensor = self.out(y)
        return merged

    def _attend(self, qkv: Tensor, rotations: Tensor | None, place: Place) -> Tensor:
        """(B,T,D+2K) → (B,T,D), each row a text of its own."""
        config = self.config
        rows, length, _ = qkv.shape
        q, k, v = qkv.split((config.d_model, self.kv_width, self.kv_width), dim=-1)
        q = q.view(rows, length, config.heads, config.head_width)
        k = k.view(rows, length, config.kv_heads, config.head_width)
        v = v.view(rows, length, config.kv_heads, config.head_width).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        grouped = config.kv_heads != config.heads
        if place.cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            assert place.positions is not None
            k, v = place.cache.write(self.layer, k, v, place.positions)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=place.mask, enable_gqa=grouped)
        return y.transpose(1, 2).reshape(rows, length, config.d_model)
