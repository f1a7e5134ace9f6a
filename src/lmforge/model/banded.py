"""One softmax over a band of recent keys and a list of earlier ones, in blocks that stay near the processor: the fast path of the sparse kinds.

    some blocks of queries ─┬─ each × the `window` keys before it and its own, a view of them ─┐
                            └─ all together × the extras that the last of them sees ───────────┴─ one softmax ─▶ y

About `SCRATCH` scores exist at a time. Keys and values are read where they lie; only the two corners of a block's band are masked, and the
few extras that come into view within it. The backward pass makes the softmax again from queries and keys (Dao et al. 2022, section 3.1),
so that nothing but queries, keys and values is kept for it.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SCRATCH = 1 << 19  # scores that exist at once: fewer are slower for the calls they take, more for the cache (docs/log.md)
kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def banded_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, extra_k: Tensor, extra_v: Tensor, seen_from: Tensor, known: Tensor | None = None
) -> Tensor:
    """Query t over keys t − window < j ≤ t and over the extras m with seen_from[m] ≤ t.

    q, k, v (B,H,T,E); extra_k, extra_v (B,H,M,E); seen_from (M,) ascending, none below `window`. → (B,H,T,E); `known`: that
    result, where only its gradient is wanted.
    """
    if q.device.type != "cpu":
        return masked_attention(q, k, v, window, extra_k, extra_v, seen_from)
    exact = torch.promote_types(q.dtype, torch.float32)
    parts = [x.to(exact) for x in (q, k, v, extra_k, extra_v)]
    result: Tensor = _Banded.apply(*parts, window, seen_from, known)  # type: ignore[no-untyped-call]
    return result.to(q.dtype)


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


@dataclasses.dataclass(frozen=True)
class Piece:
    """`blocks` of `size` queries done at once, from query `begin` on; each block sees keys from `back` before its first query on.

    extras: how many of them the last query sees; clear: how many the first one sees already.
    """

    begin: int
    blocks: int
    size: int
    back: int
    extras: int
    clear: int

    @property
    def queries(self) -> int:
        """How many."""
        return self.blocks * self.size

    @property
    def band(self) -> int:
        """Keys of its band that a block meets."""
        return self.back + self.size

    @property
    def pairs(self) -> int:
        """Scores that are computed."""
        return self.queries * (self.band + self.extras)


def block_size(window: int) -> int:
    """Queries of a block: a quarter of the band, so that a query meets 1.25 bands of keys; products of fewer than 32 rows are slow."""
    return max(32, min(256, window // 4))


def pieces(length: int, window: int, seen: list[int]) -> list[Piece]:
    """How a text of `length` tokens is cut; seen: the position each extra is seen from, ascending."""
    found: list[Piece] = []
    begin, size = 0, block_size(window)
    while begin < length:
        back, blocks, rows = min(begin, window), 1, min(size, length - begin)
        if back == window and rows == size:  # else the first window or the end: one block at a time
            keys = window + size + bisect.bisect_left(seen, begin + size)
            blocks = max(1, min(SCRATCH // (size * keys), (length - begin) // size))
        end = begin + blocks * rows
        found.append(Piece(begin, blocks, rows, back, bisect.bisect_left(seen, end), bisect.bisect_right(seen, begin)))
        begin = end
    return found


def _view(x: Tensor, piece: Piece, back: int) -> Tensor:
    """Of x (T,W): a block's rows and `back` rows before it, for each block (blocks, back + size, W); they overlap."""
    row = x.stride(0)
    shape, strides = (piece.blocks, back + piece.size, x.shape[1]), (piece.size * row, row, x.stride(1))
    return x.as_strided(shape, strides, x.storage_offset() + (piece.begin - back) * row)


def _add_back(total: Tensor, part: Tensor, piece: Piece) -> None:
    """Add part (blocks, back + size, W) to the rows of total (T,W) that `_view` took it from: rows that do not overlap at a time."""
    row = total.stride(0)
    for begin in range(0, piece.band, piece.size):
        some = part[:, begin : begin + piece.size]
        place = total.storage_offset() + (piece.begin - piece.back + begin) * row
        total.as_strided(some.shape, (piece.size * row, row, total.stride(1)), place).add_(some)


class _Scratch:
    """What all heads of one call share: how the text is cut, masks, and memory for scores."""

    def __init__(self, q: Tensor, window: int, seen_from: Tensor, buffers: int) -> None:
        seen = seen_from.tolist()
        self.pieces, self.window, self.like = pieces(q.shape[2], window, seen), window, q
        self.later = [self._later(piece, seen_from) for piece in self.pieces]
        self.buffers = [q.new_empty(max(piece.pairs for piece in self.pieces)) for _ in range(buffers)]
        self.corners: dict[tuple[int, int], list[tuple[slice, Tensor]]] = {}

    def _later(self, piece: Piece, seen_from: Tensor) -> Tensor | None:
        """(queries, extras − clear): the extras that come into view within a piece, where they are hidden yet."""
        if piece.clear >= piece.extras:
            return None
        return torch.arange(piece.begin, piece.begin + piece.queries)[:, None] < seen_from[piece.clear : piece.extras]

    def split(self, number: int, piece: Piece) -> tuple[Tensor, Tensor]:
        """A buffer as scores of the band (blocks, size, band) and of the extras (queries, extras), each in one run of memory."""
        near, far = self.buffers[number][: piece.pairs].split((piece.queries * piece.band, piece.queries * piece.extras))
        return near.view(piece.blocks, piece.size, -1), far.view(piece.queries, piece.extras)

    def joint(self, number: int, piece: Piece) -> Tensor:
        """A buffer as scores of both side by side (blocks, size, band + extras)."""
        return self.buffers[number][: piece.pairs].view(piece.blocks, piece.size, -1)

    def joined(self, source: int, target: int, piece: Piece) -> Tensor:
        """Bring what `split` of one buffer holds side by side, in another."""
        near, far = self.split(source, piece)
        whole = self.joint(target, piece)
        whole[..., : piece.band] = near
        whole.view(piece.queries, -1)[:, piece.band :] = far
        return whole

    def weights(self, piece: Piece, later: Tensor | None, q: Tensor, k: Tensor, extra_k: Tensor) -> Tensor:
        """The softmax of a piece (blocks, size, band + extras), in buffer 0; q (queries,E) scaled, k (T,E), extra_k (M,E)."""
        near, far = self.split(0, piece)
        torch.bmm(q.view(piece.blocks, piece.size, -1), _view(k, piece, piece.back).transpose(1, 2), out=near)
        for columns, mask in self._corners(piece):
            near[..., columns] += mask
        if not piece.extras:
            return torch.softmax(near, -1, out=near)
        torch.mm(q, extra_k[: piece.extras].t(), out=far)
        if later is not None:
            far[:, piece.clear :].masked_fill_(later, float("-inf"))
        return torch.softmax(self.joined(0, 1, piece), -1, out=self.joint(0, piece))

    def _corners(self, piece: Piece) -> list[tuple[slice, Tensor]]:
        """(columns, what to add): keys too far back for a block's later queries, and those after its earlier ones."""
        key = (piece.size, piece.back)
        if key not in self.corners:
            query = torch.arange(piece.size)[:, None]
            at = torch.arange(piece.band) - piece.back
            mask = self.like.new_zeros(piece.size, piece.band).masked_fill_((at > query) | (query - at >= self.window), float("-inf"))
            apart = [slice(0, piece.size), slice(piece.back, piece.band)] if piece.back >= piece.size else [slice(0, piece.band)]
            self.corners[key] = [(columns, mask[:, columns].clone()) for columns in apart]
        return self.corners[key]


class _Banded(torch.autograd.Function):
    """See the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor, extra_v: Tensor, window: int, seen_from: Tensor, known: Tensor | None
    ) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(q, k, v, extra_k, extra_v, seen_from)
        if known is not None:
            return known.to(q.dtype).detach()
        scratch, scale = _Scratch(q, window, seen_from, 2), 1 / math.sqrt(q.shape[-1])
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
        with torch.autocast("cpu", enabled=False):
            for row, head in np.ndindex(*q.shape[:2]):
                qs, ks, vs, far_k, far_v, result = (x[row, head] for x in (q, k, v, extra_k, extra_v, out))
                for piece, later in zip(scratch.pieces, scratch.later, strict=True):
                    rows = slice(piece.begin, piece.begin + piece.queries)
                    weights = scratch.weights(piece, later, qs[rows] * scale, ks, far_k)
                    y = torch.bmm(weights[..., : piece.band], _view(vs, piece, piece.back)).flatten(0, 1)
                    if piece.extras:
                        torch.addmm(y, weights.flatten(0, 1)[:, piece.band :], far_v[: piece.extras], out=y)
                    result[rows] = y
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, seen_from = ctx.saved_tensors
        scratch = _Scratch(inputs[0], ctx.window, seen_from, 3)
        slopes = [torch.zeros(x.transpose(1, 2).shape, dtype=x.dtype).transpose(1, 2) for x in inputs]
        with torch.autocast("cpu", enabled=False):
            for row, head in np.ndindex(*gradient.shape[:2]):
                _head_backward(scratch, gradient[row, head], *(x[row, head] for x in (*inputs, *slopes)))
        return *slopes, None, None, None


def _head_backward(
    scratch: _Scratch, gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, far_k: Tensor, far_v: Tensor,
    dq: Tensor, dk: Tensor, dv: Tensor, d_far_k: Tensor, d_far_v: Tensor,
) -> None:
    """Gradients of one row's one head, added to the last five; each (T,E) or (M,E)."""
    scale = 1 / math.sqrt(q.shape[-1])
    for piece, later in zip(scratch.pieces, scratch.later, strict=True):
        rows, few, band, shape = slice(piece.begin, piece.begin + piece.queries), piece.extras, piece.band, (piece.blocks, piece.size, -1)
        given, asked = gradient[rows].contiguous(), q[rows] * scale
        weights = scratch.weights(piece, later, asked, k, far_k)
        _add_back(dv, torch.bmm(weights[..., :band].transpose(1, 2), given.view(shape)), piece)
        near, far = scratch.split(1, piece)
        torch.bmm(given.view(shape), _view(v, piece, piece.back).transpose(1, 2), out=near)
        slope = near
        if few:
            torch.addmm(d_far_v[:few], weights.flatten(0, 1)[:, band:].t(), given, out=d_far_v[:few])
            torch.mm(given, far_v[:few].t(), out=far)
            slope = scratch.joined(1, 2, piece)
        slope = torch._softmax_backward_data(slope, weights, -1, slope.dtype, grad_input=scratch.joint(1, piece))
        _add_back(dk, torch.bmm(slope[..., :band].transpose(1, 2), asked.view(shape)), piece)
        y = torch.bmm(slope[..., :band], _view(k, piece, piece.back)).flatten(0, 1)
        if few:
            beyond = slope.flatten(0, 1)[:, band:]
            torch.addmm(d_far_k[:few], beyond.t(), asked, out=d_far_k[:few])
            torch.addmm(y, beyond, far_k[:few], out=y)
        torch.mul(y, scale, out=dq[rows])
