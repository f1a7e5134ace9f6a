"""Every kind of attention in its plainest form, T×T scores and loops: what the fast paths must equal. Used by tests
only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmforge.model.attention import Softmax
from lmforge.model.linear_attention import Linear
from lmforge.model.lsh import ITSELF, LSH
from lmforge.model.rope import rotate


def softmax_kind(mixer: Softmax, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None) -> Tensor:
    """q (B,T,H,E), k, v (B,T,kv_heads,E), not rotated → (B,H,T,E): the keys each query sees, one list a query, by the
    words of the docs."""
    rows, length, heads, width = q.shape
    turned_q, turned_k = (q, k) if rotations is None else (rotate(q, rotations), rotate(k, rotations))
    pooled = []
    for begin in range(0, length - (mixer.pool or length + 1) + 1, mixer.pool or 1):
        piece = slice(begin, begin + mixer.pool)
        if mixer.pooling == "mean":
            key, value = k[:, piece].mean(1), v[:, piece].mean(1)
        elif mixer.pooling == "max":
            key, value = k[:, piece].amax(1), v[:, piece].amax(1)
        else:
            key, value = (k[:, piece] * mixer.pool_keys).sum(1), (v[:, piece] * mixer.pool_values).sum(1)
        if rotations is not None:
            key = rotate(key[:, None], rotations[begin + mixer.pool // 2][None])[:, 0]
        pooled.append((begin, key, value))
    result = torch.zeros(rows, heads, length, width, dtype=q.dtype)
    window = length if mixer.window is None else mixer.window
    for t in range(length):
        near = range(max(0, t - window + 1), t + 1)
        far = [j for j in range(0, t - window + 1) if mixer.stride and j % mixer.stride == 0]
        blocks = [(key, value) for begin, key, value in pooled if begin + mixer.pool <= t and begin <= t - window]
        # (B,kv_heads,S,E)
        keys = torch.stack([*(turned_k[:, j] for j in [*far, *near]), *(key for key, _ in blocks)], 2)
        values = torch.stack([*(v[:, j] for j in [*far, *near]), *(value for _, value in blocks)], 2)
        keys, values = (x.repeat_interleave(heads // x.shape[1], 1) for x in (keys, values))
        scores = torch.einsum("bhe,bhse->bhs", turned_q[:, t], keys) / math.sqrt(width)
        result[:, :, t] = torch.einsum("bhs,bhse->bhe", scores.softmax(-1), values)
    return result


def lsh(mixer: LSH, q: Tensor, v: Tensor, rotations: Tensor | None) -> Tensor:
    """q, v (B,T,H,E) → (B,H,T,E)."""
    q = (q if rotations is None else rotate(q, rotations)).transpose(1, 2)
    v = v.transpose(1, 2)
    rows, heads, length, width = q.shape
    scores = q @ (q / q.norm(dim=-1, keepdim=True)).transpose(-1, -2) / math.sqrt(width) + ITSELF * torch.eye(
        length, dtype=q.dtype
    )
    times = torch.zeros_like(scores)  # in how many rounds each key is looked at
    for bucket in mixer.buckets_of(q):
        for b in range(rows):
            for h in range(heads):
                for t in range(length):
                    same = [j for j in range(t + 1) if bucket[b, h, j] == bucket[b, h, t]]
                    for j in same[-mixer.span :]:
                        times[b, h, t, j] += 1
    weights = scores.exp() * times if scores.dtype == torch.float64 else scores.double().exp() * times
    return (weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v


def linear(mixer: Linear, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None) -> Tensor:
    """q (B,T,H,E), k, v (B,T,kv_heads,E) → (B,H,T,E)."""
    if rotations is not None:
        q, k = rotate(q, rotations), rotate(k, rotations)
    q, k = mixer._features(q, mixer.q_features), mixer._features(k, mixer.k_features)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v.transpose(1, 2)))
    weights = (q @ k.transpose(-1, -2)).tril()
    return weights / weights.sum(-1, keepdim=True) @ v
