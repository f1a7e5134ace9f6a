"""One softmax over a band of recent keys and a list of earlier ones, in blocks that stay near the processor: the fast
path of the sparse kinds.

    a block of queries ─┬─ × the `window` keys before it and its own ──┐
                        └─ × the extras that the last of them sees ────┴─ one softmax ─▶ y

The scores of one block exist at a time (`banded_numba`); keys and values are read where they lie. The backward pass
makes the softmax again from queries and keys (Dao et al. 2022, section 3.1), so that nothing but queries, keys and
values is kept for it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmforge.model.kernels import banded_numba

kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    extra_k: Tensor,
    extra_v: Tensor,
    seen_from: Tensor,
    known: Tensor | None = None,
) -> Tensor:
    """Query t over keys t − window < j ≤ t and over the extras m with seen_from[m] ≤ t.

    q, k, v (B,H,T,E); extra_k, extra_v (B,H,M,E); seen_from (M,) ascending, none below `window`. → (B,H,T,E); `known`:
    that result, where only its gradient is wanted.
    """
    if q.device.type != "cpu":
        return masked_attention(q, k, v, window, extra_k, extra_v, seen_from)
    exact = torch.promote_types(q.dtype, torch.float32)
    parts = [x.to(exact) for x in (q, k, v, extra_k, extra_v)]
    result: Tensor = _Banded.apply(*parts, window, seen_from, known)  # type: ignore[no-untyped-call]
    return result.to(q.dtype)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, extra_k: Tensor, extra_v: Tensor, seen_from: Tensor
) -> Tensor:
    """The same on a GPU: FlexAttention skips the blocks of the T × (T + M) mask that are empty (Dong et al. 2024)."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length, extras = q.shape[2], extra_k.shape[2]
    mask = create_block_mask(visible(length, window, seen_from), None, None, length, length + extras, device=q.device)
    result: Tensor = torch.compile(flex_attention)(
        q, torch.cat((k, extra_k), 2), torch.cat((v, extra_v), 2), block_mask=mask
    )
    return result


def with_strided(x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """x (B,T,H,E), and its tokens 0, stride, 2·stride, … (B,⌈T/stride⌉,H,E). x is for one use, which makes a gradient
    that is its own."""
    return _with(x, stride, 1)


def with_means(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """x (B,T,H,E), and the mean of each complete block of `size` tokens (B,T//size,H,E). x is for one use, as above."""
    return _with(x, size, size)


def _with(x: Tensor, step: int, size: int) -> tuple[Tensor, Tensor]:
    if x.device.type != "cpu":
        return x, _parts(x, step, size).mean(2)
    result: tuple[Tensor, Tensor] = _With.apply(x, step, size)  # type: ignore[no-untyped-call]
    return result


def _parts(x: Tensor, step: int, size: int) -> Tensor:
    """x (B,T,H,E) → its first `size` tokens of every `step`, where there are so many (B,N,size,H,E)."""
    return x.unfold(1, size, step).movedim(-1, 2)


def visible(length: int, window: int, seen_from: Tensor) -> Any:
    """FlexAttention's mask function over `length` tokens followed by the extras."""

    def rule(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        token = (key <= query) & (query - key < window) & (key < length)
        if not len(seen_from):
            return token
        return token | ((key >= length) & (query >= seen_from[(key - length).clamp(min=0)]))

    return rule


class _With(torch.autograd.Function):
    """x, and the means of its `_parts`. The gradient of these is added to that of x where it lies; autograd would write
    one of x's size for them, most of it zeros, and add that: four times for each layer, as long as the products of the
    extras themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: int, size: int) -> tuple[Tensor, Tensor]:
        ctx.step, ctx.size = step, size
        return x.view_as(x), _parts(x, step, size).mean(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_means: Tensor) -> tuple[Tensor, None, None]:
        _parts(gradient, ctx.step, ctx.size).add_(of_means.unsqueeze(2), alpha=1 / ctx.size)
        return gradient, None, None


class _Banded(torch.autograd.Function):
    """See the head of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_k: Tensor,
        extra_v: Tensor,
        window: int,
        seen_from: Tensor,
        known: Tensor | None,
    ) -> Tensor:
        ctx.window = window
        inputs = [_rows_in_line(x) for x in (q, k, v, extra_k, extra_v)]
        ctx.save_for_backward(*inputs, seen_from)
        if known is not None:
            return known.to(q.dtype).detach()
        out = room_like(q)
        _by_head(banded_numba.forward, [*inputs, out], seen_from, window)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, seen_from = ctx.saved_tensors
        grads = [*(room_like(x) for x in inputs[:3]), *(room_like(x).zero_() for x in inputs[3:])]
        _by_head(banded_numba.backward, [_rows_in_line(gradient), *inputs, *grads], seen_from, ctx.window)
        return *grads, None, None, None


def _rows_in_line(x: Tensor) -> Tensor:
    """x (B,H,T,E), each row's numbers one after another in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def room_like(x: Tensor) -> Tensor:
    """Room for as much as x (B,H,T,E), heads side by side in memory."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _by_head(loops: Any, parts: list[Tensor], seen_from: Tensor, window: int) -> None:
    """Run compiled loops over each row's heads, as many at a time as PyTorch may use threads; parts (B,H,T or M,E)."""
    rows, heads, length, width = parts[0].shape
    seen = np.searchsorted(seen_from.numpy(), np.arange(length), side="right")
    like = parts[0].new_empty(0).numpy()

    def one(forward_ctx: tuple[int, ...]) -> None:
        with banded_numba.in_this_thread():
            addresses = [(x[forward_ctx].data_ptr(), x.stride(2)) for x in parts]
            loops(like, *addresses, seen, length, width, window, block_size(window), 1 / math.sqrt(width))

    places = list(np.ndindex(rows, heads))
    workers = min(torch.get_num_threads(), len(places))
    if workers < 2:
        for forward_ctx in places:
            one(forward_ctx)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, places))


def block_size(window: int) -> int:
    """Queries of a block: a quarter of the band, so that a query meets 1.25 bands of keys; products of fewer than 32
    rows are slow."""
    return max(32, min(128, window // 4))


def pairs(length: int, window: int, seen_from: Tensor) -> int:
    """Scores that are computed for a text of `length` tokens: each block of queries meets its band whole, and the
    extras its last one sees."""
    size = block_size(window)
    begins = np.arange(0, length, size)
    rows = np.minimum(size, length - begins)
    return int(
        (
            rows
            * (np.minimum(begins, window) + rows + np.searchsorted(seen_from.numpy(), begins + rows - 1, side="right"))
        ).sum()
    )
