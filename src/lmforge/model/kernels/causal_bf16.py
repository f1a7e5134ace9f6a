"""Causal attention in bfloat16 on a CPU, for rows that are not long: plain products of whole blocks of queries with all
they see.

    q block (N,t,E) · keys so far (N,s,E)ᵀ ─▶ scores (N,t,s) ─mask, softmax─▶ shares ─· values─▶ y

The library's kernel goes through bfloat16 on a CPU in small tiles; its backward pass took half of a training step
(docs/internals/log.md). Here a block of queries is one batched product, which the matrix units of the processor (AMX)
do in one
go. Shares are kept for the backward
pass: memory O(B·H·T²/2), so rows of more than `LONGEST` tokens go the other way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512  # tokens of a row up to which this is faster than the library (docs/internals/log.md)
_QUERIES = 128  # of a block: larger ones waste products with keys that are not seen
_CACHED = 1 << 21  # bytes of scores worked on at a time


def suits(q: Tensor, k: Tensor) -> bool:
    """Whether queries and keys (B,T,H,E) are what `causal_attention` is for."""
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[1] <= LONGEST and q.shape == k.shape


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (B,T,H,E) → (B,T,H,E)."""
        y, kept = torch.empty_like(v, memory_format=torch.contiguous_format), []
        for rows, queries in _pieces(q):
            keys, values = (_together(x[rows, : queries.stop]) for x in (k, v))
            scores = torch.baddbmm(
                _later(queries, q.dtype), _together(q[rows, queries]), keys.mT, alpha=1 / math.sqrt(q.shape[-1])
            )
            attn_probs = torch.softmax(scores, -1)
            y[rows, queries] = _apart(attn_probs @ values, q)
            kept.append(attn_probs)
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, dv. The softmax's own gradient is shares · (dshares − Σ shares · dshares)."""
        q, k, v, *kept = ctx.saved_tensors
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
        scale = 1 / math.sqrt(q.shape[-1])
        for (rows, queries), attn_probs in zip(_pieces(q), kept, strict=True):
            seen = slice(0, queries.stop)
            part, keys, values = _together(gradient[rows, queries]), _together(k[rows, seen]), _together(v[rows, seen])
            grad = torch._softmax_backward_data(part @ values.mT, attn_probs, -1, attn_probs.dtype).mul_(scale)
            dq[rows, queries] = _apart(grad @ keys, q)
            for whole, new in ((dk, grad.mT @ _together(q[rows, queries])), (dv, attn_probs.mT @ part)):
                new = _apart(new, q)
                whole[rows, : queries.start] += new[:, : queries.start]
                whole[rows, queries] = new[:, queries.start :]  # no earlier query saw these
        return dq, dk, dv


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q Kᵀ/√E) V, each query seeing the keys up to its own: q, k, v (B,T,H,E) → (B,T,H,E). See `suits`."""
    y: Tensor = _Causal.apply(q, k, v)  # type: ignore[no-untyped-call]
    return y


def shares_kept(length: int) -> float:
    """How many shares of a head are kept for each token of a row."""
    return (
        sum(
            (min(start + _QUERIES, length) - start) * min(start + _QUERIES, length)
            for start in range(0, length, _QUERIES)
        )
        / length
    )


def _pieces(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows, queries) of the blocks, such that a block's scores stay in the cache."""
    count, length, heads, _ = q.shape
    for start in range(0, length, _QUERIES):
        stop = min(start + _QUERIES, length)
        size = max(1, _CACHED // (heads * (stop - start) * stop * q.element_size()))
        for first in range(0, count, size):
            yield slice(first, min(first + size, count)), slice(start, stop)


def _together(x: Tensor) -> Tensor:
    """(B,t,H,E) → (B·H,t,E)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _apart(x: Tensor, like: Tensor) -> Tensor:
    """(B·H,t,E) → (B,t,H,E)."""
    return x.view(-1, like.shape[2], *x.shape[1:]).transpose(1, 2)


def _later(queries: slice, dtype: torch.dtype) -> Tensor:
    """(t,s): −∞ where a key comes after the query, else 0."""
    return torch.full((queries.stop - queries.start, queries.stop), float("-inf"), dtype=dtype).triu_(queries.start + 1)
