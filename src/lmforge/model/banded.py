"""One softmax over a band of recent keys and a list of earlier ones, without masks or T×T scores: the fast path of the sparse kinds.

    queries t ──┬─ own block, causal ────────────┐
                ├─ block before, its later keys ─┼─ joined by their log-sums of exponentials ─▶ y
                └─ extras seen from before t ────┘

Blocks are as long as the band, so the two causal products together are exactly the last `window` keys of each query. Each part is one
call of the library's kernel; the parts' outputs o_i with log-sums l_i join to o = Σ exp(l_i − L) o_i, L = log Σ exp(l_i) (Dao et al. 2022,
section 3.1). For the gradient each part's kernel is given the joint o and L: its weights exp(s − L) are then those of the joint softmax.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1024  # queries that meet the extras at once: bounds the mask to CHUNK × extras numbers
kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, extra_k: Tensor, extra_v: Tensor, seen_from: Tensor) -> Tensor:
    """Query t over keys t − window < j ≤ t and over the extras m with seen_from[m] ≤ t.

    q, k, v (B,H,T,E); extra_k, extra_v (B,H,M,E); seen_from (M,) ascending, none below `window`. → (B,H,T,E)
    """
    if q.device.type != "cpu":
        return masked_attention(q, k, v, window, extra_k, extra_v, seen_from)
    result: Tensor = _Banded.apply(q, k, v, window, extra_k, extra_v, seen_from)  # type: ignore[no-untyped-call]
    return result


def masked_attention(q: Tensor, k: Tensor, v: Tensor, window: int, extra_k: Tensor, extra_v: Tensor, seen_from: Tensor) -> Tensor:
    """The same on a GPU: FlexAttention skips the blocks of the T × (T + M) mask that are empty (Dong et al. 2024)."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length, extras = q.shape[2], extra_k.shape[2]
    mask = create_block_mask(visible(length, window, seen_from), None, None, length, length + extras, device=q.device)
    result: Tensor = torch.compile(flex_attention)(q, torch.cat((k, extra_k), 2), torch.cat((v, extra_v), 2), block_mask=mask)
    return result


def visible(length: int, window: int, seen_from: Tensor) -> Any:
    """FlexAttention's mask function over `length` tokens followed by the extras."""

    def rule(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        token = (key <= query) & (query - key < window) & (key < length)
        if not len(seen_from):
            return token
        return token | ((key >= length) & (query >= seen_from[(key - length).clamp(min=0)]))

    return rule


def _blocks(x: Tensor, window: int) -> Tensor:
    """(B,H,T,…) → (B·H, ceil(T/window), window, …), zeros after the end."""
    missing = -x.shape[2] % window
    if missing:
        x = F.pad(x, (*[0, 0] * (x.ndim - 3), 0, missing))
    return x.reshape(x.shape[0] * x.shape[1], -1, window, *x.shape[3:])


def _tokens(x: Tensor, like: Tensor) -> Tensor:
    """Undo `_blocks`."""
    return x.reshape(*like.shape[:2], -1, *x.shape[3:])[:, :, : like.shape[2]]


def _before(queries: Tensor) -> Tensor:
    """Of blocks (N, nb, window, …): what looks into the block before, last query first, so that 'later keys' becomes causal."""
    return queries[:, 1:, :-1].flip(2)


def _earlier(keys: Tensor) -> Tensor:
    """Of blocks (N, nb, window, …): what is looked at from the block after, last key first."""
    return keys[:, :-1, 1:].flip(2)


def _extras(q: Tensor, seen_from: Tensor) -> list[tuple[slice, int, Tensor]]:
    """(queries, how many extras the last of them sees, additive mask) for each chunk of queries that sees any."""
    length, found = q.shape[2], []
    if len(seen_from):
        for begin in range(int(seen_from[0]), length, CHUNK):
            end = min(begin + CHUNK, length)
            count = int((seen_from < end).sum())
            hidden = torch.arange(begin, end, device=q.device)[:, None] < seen_from[:count]
            mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, float("-inf"))
            found.append((slice(begin, end), count, mask[None, None]))
    return found


def _join(out: Tensor, total: Tensor, part: Tensor, log_sum: Tensor) -> None:
    """Take one part into the joint output and log-sum, in place."""
    joint = torch.logaddexp(total, log_sum)
    out.mul_((total - joint).exp_().unsqueeze(-1)).add_(part * (log_sum - joint).exp_().unsqueeze(-1))
    total.copy_(joint)


class _Banded(torch.autograd.Function):
    """See the head of this file."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int, extra_k: Tensor, extra_v: Tensor, seen_from: Tensor) -> Tensor:
        window = min(window, q.shape[2])
        queries, keys, values = (_blocks(x, window) for x in (q, k, v))
        out, total = kernel(queries, keys, values, 0.0, True)
        if queries.shape[1] > 1 and window > 1:
            part, log_sum = kernel(_before(queries), _earlier(keys), _earlier(values), 0.0, True)
            _join(out[:, 1:, :-1], total[:, 1:, :-1], part.flip(2), log_sum.flip(2))
        out, total = _tokens(out, q).contiguous(), _tokens(total, q).contiguous()
        for chunk, count, mask in _extras(q, seen_from):
            part, log_sum = kernel(q[:, :, chunk], extra_k[:, :, :count], extra_v[:, :, :count], 0.0, False, attn_mask=mask)
            _join(out[:, :, chunk], total[:, :, chunk], part, log_sum)
        ctx.window = window
        ctx.save_for_backward(q, k, v, extra_k, extra_v, seen_from, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, extra_k, extra_v, seen_from, out, total = ctx.saved_tensors
        queries, keys, values, outs, totals, gradients = (_blocks(x, ctx.window) for x in (q, k, v, out, total, gradient))
        dq, dk, dv = kernel_backward(gradients, queries, keys, values, outs, totals, 0.0, True)
        if queries.shape[1] > 1 and ctx.window > 1:
            part = kernel_backward(_before(gradients), _before(queries), _earlier(keys), _earlier(values), _before(outs),
                             _before(totals).contiguous(), 0.0, True)
            dq[:, 1:, :-1] += part[0].flip(2)
            dk[:, :-1, 1:] += part[1].flip(2)
            dv[:, :-1, 1:] += part[2].flip(2)
        dq, dk, dv = (_tokens(x, q) for x in (dq, dk, dv))
        d_extra_k, d_extra_v = torch.zeros_like(extra_k), torch.zeros_like(extra_v)
        for chunk, count, mask in _extras(q, seen_from):
            part = kernel_backward(gradient[:, :, chunk], q[:, :, chunk], extra_k[:, :, :count], extra_v[:, :, :count], out[:, :, chunk],
                             total[:, :, chunk].contiguous(), 0.0, False, attn_mask=mask)
            dq[:, :, chunk] += part[0]
            d_extra_k[:, :, :count] += part[1]
            d_extra_v[:, :, :count] += part[2]
        return dq, dk, dv, None, d_extra_k, d_extra_v, None
