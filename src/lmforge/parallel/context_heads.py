"""Attention that needs whole rows, over rows whose tokens are spread over processes: each process takes some heads.

    tokens of this process, all heads ─all-to-all─▶ all tokens, its heads ─the mixer as it is─▶ ─all-to-all─▶ back

Jacobs et al. 2023, "DeepSpeed Ulysses". Hash buckets reach anywhere in a row, so this is how they stay exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmforge.model.lsh import LSH
from lmforge.model.packing import Packing
from lmforge.parallel.context_share import Rows, Share


class HeadsLSH(LSH):
    """Attention inside hash buckets of whole rows, for some of the heads; takes the place of `LSH` in a network."""

    share: Share
    table: Any  # the rotations of all positions, asked for in each pass

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """See `attention.Mixer`: q, v (B,t,H,E) of this process's tokens → (B,H,t,E)."""
        share, rows, width = self.share, self.share.current, q.shape[-1]
        both: Tensor = _Whole.apply(torch.cat((q, v), -1), share, rows)  # type: ignore[no-untyped-call]
        turns = None if rotations is None else self.table()[: rows.length]
        packing = Packing(rows.starts) if rows.packed else None
        parts = [both.flatten(2)] if packing is None else packing.apart(both.flatten(2))
        results = []
        for part in parts:
            queries, values = part.unflatten(-1, (-1, 2 * width)).split(width, -1)
            some = None if turns is None else turns[: part.shape[1]]
            results.append(super().forward(queries, queries, values, some).transpose(1, 2).flatten(2))
        mixed = results[0] if packing is None else packing.together(results)
        back: Tensor = _Parts.apply(mixed.unflatten(-1, (-1, width)), share, rows)  # type: ignore[no-untyped-call]
        return back.transpose(1, 2)


def _to_heads(x: Tensor, share: Share, rows: Rows) -> Tensor:
    """This process's tokens of all heads (B,t,H,W) → all tokens of its heads (B,T,H/c,W)."""
    own = x.unflatten(2, (share.size, -1)).permute(2, 1, 0, 3, 4).contiguous()  # (c,t,B,H/c,W)
    counts = [sum(map(len, rows.pieces_of(process))) for process in range(share.size)]
    room = x.new_empty(rows.length, *own.shape[2:])
    dist.all_to_all_single(room, own.flatten(0, 1), counts, [len(rows.index)] * share.size, group=share.group)
    whole = torch.empty_like(room)
    whole[_order(rows, share)] = room
    return whole.transpose(0, 1)


def _to_tokens(x: Tensor, share: Share, rows: Rows) -> Tensor:
    """All tokens of this process's heads (B,T,H/c,W) → its tokens of all heads (B,t,H,W)."""
    ordered = x.transpose(0, 1)[_order(rows, share)].contiguous()  # (T,B,H/c,W)
    counts = [sum(map(len, rows.pieces_of(process))) for process in range(share.size)]
    own = len(rows.index)
    room = x.new_empty(share.size * own, *ordered.shape[1:])
    dist.all_to_all_single(room, ordered, [own] * share.size, counts, group=share.group)
    tokens: Tensor = room.unflatten(0, (share.size, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)
    return tokens


def _order(rows: Rows, share: Share) -> Tensor:
    """Where the tokens of process 0, 1, … stand in the row (T,)."""
    pieces = [piece for process in range(share.size) for piece in rows.pieces_of(process)]
    return torch.cat([torch.arange(p.start, p.stop, device=rows.index.device) for p in pieces])


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share, rows: Rows) -> Tensor:
        ctx.share, ctx.rows = share, rows
        return _to_heads(x, share, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _to_tokens(gradient, ctx.share, ctx.rows), None, None


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share, rows: Rows) -> Tensor:
        ctx.share, ctx.rows = share, rows
        return _to_tokens(x, share, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _to_heads(gradient, ctx.share, ctx.rows), None, None
