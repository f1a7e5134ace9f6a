"""The softmax kinds of attention over rows whose tokens are spread over processes.

    band (all keys, or a window)   keys and values go round, as far as queries see them      `context_ring`
    strided and pooled keys        few: every process gets all of them, by one sum over processes

Pooled blocks are those of documents, wherever pieces end: each process adds its tokens' share of a block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmforge.model.rope import rotate
from lmforge.model.softmax_attention import Softmax
from lmforge.parallel.context_ring import ring_attention
from lmforge.parallel.context_share import Rows, Share


class Extras(NamedTuple):
    """Keys and values beside the band, the same on all processes: keys, values (B,M,kv_heads,E); the first token after
    which each is seen and the token where it begins, both positions in the row (B,M)."""

    keys: Tensor
    values: Tensor
    seen: Tensor
    begin: Tensor


class RingSoftmax(Softmax):
    """The softmax kinds over a share of a row; takes the place of `Softmax` in a network."""

    share: Share
    table: Any  # the rotations of all positions, asked for in each pass

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """See `attention.Mixer`: q (B,t,H,E), k and v (B,t,kv_heads,E) of this process's tokens → (B,H,t,E)."""
        rows = self.share.current
        plain, turns = k, None
        if rotations is not None:
            turns = self.table()
            q, k = rotate(q, turns[rows.positions]), rotate(k, turns[rows.positions])
        parts = []
        if self.stride:
            parts.append(self._strided(rows, k, v))
        if self.pool and self.window is not None:
            parts.append(self._blocks(rows, plain, v, turns))
        extras = Extras(*(torch.cat(part, 1) for part in zip(*parts, strict=True))) if parts else _no_extras(rows, k)
        return ring_attention(q, k, v, self.window, self.share, extras)

    def _strided(self, rows: Rows, k: Tensor, v: Tensor) -> Extras:
        """The tokens 0, stride, 2·stride, … of each document, seen when they have left the window."""
        assert self.stride
        assert self.window is not None
        at = torch.arange(rows.length, device=k.device)
        chosen = (at - rows.starts) % self.stride == 0
        slot = chosen.cumsum(1) - 1
        begin = self._at_slots(rows, chosen, slot)
        own = rows.cut(chosen)
        gathered = self._summed(torch.cat((k, v), -1) * own[..., None, None], rows.cut(slot), begin.shape[1])
        keys, values = gathered.chunk(2, -1)
        return Extras(keys, values, begin + self.window, begin)

    def _blocks(self, rows: Rows, k: Tensor, v: Tensor, turns: Tensor | None) -> Extras:
        """One pooled key and value for each block of `pool` tokens of a document; seen when the block is complete and
        its first token has left the window, which no token of a document does that ends before."""
        assert self.pool
        assert self.window is not None
        offset = (torch.arange(rows.length, device=k.device) - rows.starts) % self.pool
        slot = (offset == 0).cumsum(1) - 1
        begin = self._at_slots(rows, offset == 0, slot)
        own_slot, both = rows.cut(slot), torch.cat((k, v), -1)
        if self.pooling == "max":
            pooled: Tensor = _LargestOf.apply(both, own_slot, begin.shape[1], self.share)  # type: ignore[no-untyped-call]
        elif self.pooling == "conv":
            weights = torch.cat([*self.pool_weights(rows.cut(offset))], -1)
            pooled = self._summed(both * weights, own_slot, begin.shape[1])
        else:
            pooled = self._summed(both / self.pool, own_slot, begin.shape[1])
        keys, values = pooled.chunk(2, -1)
        if turns is not None:
            middle = begin - rows.starts.gather(1, begin.clamp(max=rows.length - 1)) + self.pool // 2
            keys = rotate(keys, turns[middle.clamp(max=len(turns) - 1)])
        return Extras(keys, values, begin + max(self.window, self.pool), begin)

    @staticmethod
    def _at_slots(rows: Rows, chosen: Tensor, slot: Tensor) -> Tensor:
        """Where the chosen tokens (B,T) stand, slot by slot (B,M); rows with fewer than M are filled up with the row's
        length, which no token sees."""
        most = int(chosen.sum(1).max()) if rows.rows else 0
        begin = slot.new_full((rows.rows, most + 1), rows.length)
        at = torch.arange(rows.length, device=slot.device).expand_as(slot)
        begin.scatter_(1, torch.where(chosen, slot, most), torch.where(chosen, at, rows.length))
        return begin[:, :most]

    def _summed(self, x: Tensor, slot: Tensor, slots: int) -> Tensor:
        """x (B,t,h,W) added up by slot (B,t), over all processes → (B,slots,h,W)."""
        into = x.new_zeros(x.shape[0], slots, *x.shape[2:])
        return self.share.sum(into.scatter_add(1, slot[..., None, None].expand_as(x), x))


def _no_extras(rows: Rows, k: Tensor) -> Extras:
    keys, at = k.new_zeros(len(k), 0, *k.shape[2:]), rows.starts.new_zeros(len(k), 0)
    return Extras(keys, keys, at, at)


class _LargestOf(torch.autograd.Function):
    """x (B,t,h,W) → the largest of each slot over all processes (B,slots,h,W); the gradient goes to it, in equal parts
    where several are as large, as that of `amax`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, slots: int, share: Share) -> Tensor:
        index = slot[..., None, None].expand_as(x)
        most = x.new_full((x.shape[0], slots, *x.shape[2:]), float("-inf")).scatter_reduce(1, index, x, "amax")
        dist.all_reduce(most, dist.ReduceOp.MAX, group=share.group)
        ctx.save_for_backward(x, slot, most)
        ctx.share = share
        return most

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, slot, most = ctx.saved_tensors
        index = slot[..., None, None].expand_as(x)
        largest = (x == most.gather(1, index)).to(x.dtype)
        both = torch.stack((torch.zeros_like(most).scatter_add(1, index, largest), gradient))
        dist.all_reduce(both, group=ctx.share.group)
        return largest * (both[1] / both[0].clamp(min=1)).gather(1, index), None, None, None
