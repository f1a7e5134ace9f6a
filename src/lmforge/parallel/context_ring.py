"""Softmax attention over rows whose tokens are spread over processes: keys and values go round, results are merged.

    own queries × own keys ─▶ (y, log Σ exp) ─┐
    own queries × keys of the process 1 before ─▶ merged ─┐
    own queries × keys of the process 2 before ─▶ ……………… merged ─▶ y            (Liu et al. 2023, "Ring attention")

Each token sees one interval of keys: from the beginning of its document, or of its window, to itself. So each process
is sent what its queries need of the others' keys, and no more: with a window, the end of the neighbouring piece. What
strided and pooled kinds see beside it is little, and every process gets all of it. The backward pass asks for the keys
again and sends their gradients back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmforge.model.kernels.banded import kernel, kernel_backward
from lmforge.model.rope import rotate
from lmforge.model.softmax_attention import Softmax
from lmforge.parallel.context_share import TILE, Rows, Share


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
        rows, share = self.share.current, self.share
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
        y: Tensor = _Ring.apply(q, k, v, *extras, share, rows, self.window)  # type: ignore[no-untyped-call]
        return y

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
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=share.group)
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
        torch.distributed.all_reduce(both, group=ctx.share.group)
        return largest * (both[1] / both[0].clamp(min=1)).gather(1, index), None, None, None


class _Ring(torch.autograd.Function):
    """See the head of this file. q (B,t,H,E); k, v, extras (B,…,kv_heads,E) → (B,H,t,E)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_k: Tensor,
        extra_v: Tensor,
        seen: Tensor,
        begin: Tensor,
        share: Share,
        rows: Rows,
        window: int | None,
    ) -> Tensor:
        ctx.share, ctx.rows, ctx.window = share, rows, window
        q = q.transpose(1, 2).contiguous()
        exact = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(q.shape, dtype=exact, device=q.device)
        total = torch.full(q.shape[:-1], float("-inf"), dtype=exact, device=q.device)
        for held in _going_round(share, rows, window, torch.cat((k, v), -1)):
            for tile, keys, mask in held.tiles():
                _merge(out, total, tile, *_meet(q[:, :, tile], *held.keys_values(keys, q.shape[1]), mask))
        for tile, mask in _extra_tiles(rows, seen, begin):
            parts = [_wide(x, q.shape[1]) for x in (extra_k, extra_v)]
            _merge(out, total, tile, *_meet(q[:, :, tile], *parts, mask))
        y = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, extra_k, extra_v, seen, begin, y, total)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, extra_k, extra_v, seen, begin, y, total = ctx.saved_tensors
        share, rows, heads = ctx.share, ctx.rows, q.shape[1]
        gradient = gradient.contiguous()
        exact = torch.promote_types(q.dtype, torch.float32)
        given, own = (gradient, q, y, total), torch.cat((k, v), -1)
        dq = torch.zeros(q.shape, dtype=exact, device=q.device)
        d_both = torch.zeros(own.shape, dtype=exact, device=q.device)
        for held in _going_round(share, rows, ctx.window, own):
            back = torch.zeros(held.both.shape, dtype=exact, device=q.device)
            for tile, keys, mask in held.tiles():
                at = held.slice_of(keys)
                grads = _meet_backward(*(x[:, :, tile] for x in given), *held.keys_values(keys, heads), mask)
                dq[:, :, tile] += grads[0]
                back[:, at] += torch.cat([_narrow(x, k.shape[2]) for x in grads[1:]], -1)
            held.give_back(back, d_both)
        d_extra = [torch.zeros(x.shape, dtype=exact, device=q.device) for x in (extra_k, extra_v)]
        for tile, mask in _extra_tiles(rows, seen, begin):
            parts = [_wide(x, heads) for x in (extra_k, extra_v)]
            grads = _meet_backward(*(x[:, :, tile] for x in given), *parts, mask)
            dq[:, :, tile] += grads[0]
            for into, more in zip(d_extra, grads[1:], strict=True):
                into += _narrow(more, k.shape[2])
        dk, dv = d_both.to(k.dtype).chunk(2, -1)
        return dq.transpose(1, 2).to(q.dtype), dk, dv, *(x.to(k.dtype) for x in d_extra), *[None] * 5


class _Held:
    """Keys and values, side by side, of one process, as far as this process's queries need them."""

    def __init__(
        self, share: Share, rows: Rows, window: int | None, offset: int, both: Tensor, needed: list[range]
    ) -> None:
        self.share, self.rows, self.window, self.offset = share, rows, window, offset
        self.both, self.needed = both, needed

    def tiles(self) -> Iterator[tuple[slice, range, Tensor | None]]:
        """(some of this process's queries, the keys that they meet as positions in the row, what of these each sees;
        None: all)."""
        low, earliest, latest = self.rows.reach(self.window)
        begin = 0
        for piece in self.rows.own:
            for first in range(piece.start, piece.stop, TILE):
                queries = range(first, min(first + TILE, piece.stop))
                tile = slice(begin + first - piece.start, begin + queries.stop - piece.start)
                for needed in self.needed:
                    keys = range(max(needed.start, earliest[first]), min(needed.stop, queries.stop))
                    if len(keys):
                        whole = keys.stop <= first + 1 and latest[queries.stop - 1] <= keys.start
                        yield tile, keys, None if whole else _mask(low, queries, keys)
            begin += len(piece)

    def slice_of(self, keys: range) -> slice:
        """Where keys at these positions are among those held."""
        begin = 0
        for needed in self.needed:
            if needed.start <= keys.start and keys.stop <= needed.stop:
                return slice(begin + keys.start - needed.start, begin + keys.stop - needed.start)
            begin += len(needed)
        raise AssertionError(keys)

    def keys_values(self, keys: range, heads: int) -> list[Tensor]:
        """Each (B,heads,keys,E)."""
        return [_wide(x, heads) for x in self.both[:, self.slice_of(keys)].chunk(2, -1)]

    def give_back(self, gradient: Tensor, own: Tensor) -> None:
        """Send the gradient of what is held to the process it is from; add to `own` what another sends of this one's
        keys and values."""
        share, rows = self.share, self.rows
        if not self.offset:
            own += gradient
            return
        to, of = (share.index + self.offset) % share.size, (share.index - self.offset) % share.size
        needed = needed_by(rows, self.window, to, share.index)
        room = own.new_empty(own.shape[0], sum(map(len, needed)), *own.shape[2:])
        sends, receives = [(of, gradient)] if gradient.shape[1] else [], [(to, room)] if room.shape[1] else []
        for work in share.exchange(sends, receives):
            work.wait()
        for some, at in zip(room.split([len(each) for each in needed], 1), _places(rows, needed, share), strict=True):
            own[:, at] += some


def needed_by(rows: Rows, window: int | None, process: int, source: int) -> list[range]:
    """What of the keys of `source` the queries of `process` see: a range for each of its pieces that they see."""
    _, earliest, _ = rows.reach(window)
    found = []
    for piece in rows.pieces_of(source):
        later = [q for q in rows.pieces_of(process) if len(q) and q.start >= piece.start]
        low = min((earliest[q.start] for q in later), default=piece.stop)
        if max(piece.start, low) < piece.stop:
            found.append(range(max(piece.start, low), piece.stop))
    return found


def _places(rows: Rows, needed: list[range], share: Share) -> list[slice]:
    """Where ranges of this process's own tokens are among them."""
    places, begin = [], 0
    for piece in rows.own:
        for each in needed:
            if piece.start <= each.start and each.stop <= piece.stop and len(each):
                places.append(slice(begin + each.start - piece.start, begin + each.stop - piece.start))
        begin += len(piece)
    return places


def _going_round(share: Share, rows: Rows, window: int | None, both: Tensor) -> Iterator[_Held]:
    """Keys and values side by side (B,t,kv_heads,2E), of this process and then of the others, as far as it needs them;
    the next are on their way while some are used."""

    def ask(offset: int) -> tuple[list[Any], Tensor, list[range]]:
        to, of = (share.index + offset) % share.size, (share.index - offset) % share.size
        theirs, mine = needed_by(rows, window, to, share.index), needed_by(rows, window, share.index, of)
        parts = [both[:, place] for place in _places(rows, theirs, share)]
        room = both.new_empty(both.shape[0], sum(map(len, mine)), *both.shape[2:])
        sends = [(to, torch.cat(parts, 1))] if parts else []
        return share.exchange(sends, [(of, room)] if room.shape[1] else []), room, mine

    coming = ask(1) if share.size > 1 else None
    yield _Held(share, rows, window, 0, both, list(rows.own))
    for offset in range(1, share.size):
        assert coming is not None
        waiting, room, needed = coming
        for work in waiting:
            work.wait()
        coming = ask(offset + 1) if offset + 1 < share.size else None
        yield _Held(share, rows, window, offset, room, needed)


def _mask(low: Tensor, queries: range, keys: range) -> Tensor:
    """(B,1,queries,keys): 0 where a query sees a key, else −∞."""
    at = torch.arange(keys.start, keys.stop, device=low.device)
    query = torch.arange(queries.start, queries.stop, device=low.device)[:, None]
    seen = (at <= query) & (at >= low[:, queries.start : queries.stop, None])
    return torch.zeros(seen.shape, device=low.device).masked_fill_(~seen, float("-inf")).unsqueeze(1)


def _extra_tiles(rows: Rows, seen: Tensor, begin: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some of this process's queries at a time, and which extras each sees (B,1,queries,M)."""
    starts = rows.cut(rows.starts)
    for first in range(0, len(rows.index) if seen.shape[1] else 0, TILE):
        tile = slice(first, first + TILE)
        query = rows.index[tile, None]
        visible = (query >= seen[:, None]) & (begin[:, None] >= starts[:, tile, None])
        if visible.any():
            yield (
                tile,
                torch.zeros(visible.shape, device=seen.device).masked_fill_(~visible, float("-inf")).unsqueeze(1),
            )


def _wide(x: Tensor, heads: int) -> Tensor:
    """(B,S,kv_heads,E) → (B,heads,S,E)."""
    return x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1)


def _narrow(gradient: Tensor, kv_heads: int) -> Tensor:
    """The gradient of what `_wide` made → that of what it was given."""
    return gradient.unflatten(1, (kv_heads, -1)).sum(2).transpose(1, 2)


def _meet(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each (B,H,·,E) → y (B,H,t,E) and log Σ exp of the scores (B,H,t); where a query sees nothing, 0 and −∞."""
    if q.device.type == "cpu":
        part, log_sum = kernel(q, k, v, 0.0, False, attn_mask=None if mask is None else mask.to(q.dtype))
    else:
        scores = (q @ k.mT).float() / math.sqrt(q.shape[-1])
        scores = scores if mask is None else scores + mask
        log_sum = scores.logsumexp(-1)
        part = (scores - log_sum.unsqueeze(-1)).exp().to(v.dtype) @ v
    if mask is None:
        return part, log_sum
    nothing = (mask == float("-inf")).all(-1).expand_as(log_sum)
    return part.masked_fill(nothing.unsqueeze(-1), 0), log_sum.masked_fill(nothing, float("-inf"))


def _merge(out: Tensor, total: Tensor, tile: slice, part: Tensor, log_sum: Tensor) -> None:
    """Take the softmax over more keys into what there is (in place)."""
    before = total[:, :, tile]
    joint = torch.logaddexp(before, log_sum.to(before.dtype))
    shares = [torch.where(joint == float("-inf"), 0.0, (each - joint).exp()) for each in (before, log_sum)]
    out[:, :, tile] = out[:, :, tile] * shares[0].unsqueeze(-1) + part * shares[1].unsqueeze(-1)
    total[:, :, tile] = joint


def _meet_backward(
    gradient: Tensor, q: Tensor, y: Tensor, total: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> list[Tensor]:
    """Gradients of q, k, v from that of the merged result y, whose log Σ exp is `total` (Dao et al. 2022, algorithm
    4)."""
    if q.device.type == "cpu":
        parts = [x.contiguous() for x in (gradient, q, k, v, y, total)]
        given = None if mask is None else mask.to(q.dtype)
        return list(kernel_backward(*parts[:4], parts[4], parts[5], 0.0, False, attn_mask=given))
    scale = 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.mT).float() * scale - total.unsqueeze(-1)
    weights = (scores if mask is None else scores + mask).exp()
    along = (gradient.float() * y.float()).sum(-1, keepdim=True)
    grad = weights * ((gradient @ v.mT).float() - along) * scale
    return [grad.to(q.dtype) @ k, grad.mT.to(q.dtype) @ q, weights.mT.to(q.dtype) @ gradient]
