"""Keys and values that go round between processes, and softmax over parts of them, merged.

    own queries × own keys ─▶ (y, log Σ exp) ─┐
    own queries × keys of the process 1 before ─▶ merged ─┐
    own queries × keys of the process 2 before ─▶ ……………… merged ─▶ y            (Liu et al. 2023, "Ring attention")

Each token sees one interval of keys: from the beginning of its document, or of its window, to itself. So each process
is sent what its queries need of the others' keys, and no more: with a window, the end of the neighbouring piece. The
backward pass asks for the keys again and sends their gradients back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmforge.model.kernels.banded import kernel, kernel_backward
from lmforge.parallel.context_share import Rows, Share

TILE = 512  # queries that meet their keys at once


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, share: Share, extras: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Tensor:
    """Causal attention of this process's queries q (B,t,H,E) over keys and values k, v (B,t,kv_heads,E) of all, each
    query over those of its document (and window), and over `extras`, which all processes have: keys, values
    (B,M,kv_heads,E); the position from which each is seen and where it begins, which has to be in the query's document
    (B,M). → (B,H,t,E)."""
    y: Tensor = _Ring.apply(q, k, v, *extras, share, share.current, window)  # type: ignore[no-untyped-call]
    return y


class _Ring(torch.autograd.Function):
    """See `ring_attention`."""

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
            keys_values = _wide(extra_k, q.shape[1]), _wide(extra_v, q.shape[1])
            _merge(out, total, tile, *_meet(q[:, :, tile], *keys_values, mask))
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
                grads = _meet_backward(given, tile, *held.keys_values(keys, heads), mask)
                dq[:, :, tile] += grads[0]
                back[:, at] += torch.cat([_narrow(x, k.shape[2]) for x in grads[1:]], -1)
            held.give_back(back, d_both)
        d_extra = [torch.zeros(x.shape, dtype=exact, device=q.device) for x in (extra_k, extra_v)]
        for tile, mask in _extra_tiles(rows, seen, begin):
            grads = _meet_backward(given, tile, _wide(extra_k, heads), _wide(extra_v, heads), mask)
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

    def keys_values(self, keys: range, heads: int) -> tuple[Tensor, Tensor]:
        """Each (B,heads,keys,E)."""
        k, v = self.both[:, self.slice_of(keys)].chunk(2, -1)
        return _wide(k, heads), _wide(v, heads)

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
    narrow: Tensor = gradient.unflatten(1, (kv_heads, -1)).sum(2).transpose(1, 2)
    return narrow


def _meet(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each (B,H,·,E) → y (B,H,t,E) and log Σ exp of the scores (B,H,t); where a query sees nothing, 0 and −∞."""
    if q.device.type == "cpu":
        part, log_sum = kernel(q, k, v, 0.0, False, attn_mask=None if mask is None else mask.to(q.dtype))
    else:
        part, log_sum = plain_meet(q, k, v, mask)
    if mask is None:
        return part, log_sum
    nothing = (mask == float("-inf")).all(-1).expand_as(log_sum)
    return part.masked_fill(nothing.unsqueeze(-1), 0), log_sum.masked_fill(nothing, float("-inf"))


def plain_meet(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_meet` where there is no such kernel; NaN where a query sees nothing."""
    scores = _scores(q, k, mask)
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum.unsqueeze(-1)).exp().to(v.dtype) @ v, log_sum


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
    return scores if mask is None else scores + mask


def _merge(out: Tensor, total: Tensor, tile: slice, part: Tensor, log_sum: Tensor) -> None:
    """Take the softmax over more keys into what there is (in place)."""
    before = total[:, :, tile]
    joint = torch.logaddexp(before, log_sum.to(before.dtype))
    shares = [torch.where(joint == float("-inf"), 0.0, (each - joint).exp()) for each in (before, log_sum)]
    out[:, :, tile] = out[:, :, tile] * shares[0].unsqueeze(-1) + part * shares[1].unsqueeze(-1)
    total[:, :, tile] = joint


def _meet_backward(
    given: tuple[Tensor, ...], tile: slice, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of some queries, k and v; given: the gradient of the merged result, all queries, that result, and its
    log Σ exp."""
    gradient, q, y, total = (x[:, :, tile] for x in given)
    if q.device.type != "cpu":
        return plain_meet_backward(gradient, q, y, total, k, v, mask)
    gradient, q, k, v, y, total = (x.contiguous() for x in (gradient, q, k, v, y, total))
    added = None if mask is None else mask.to(q.dtype)
    grads: tuple[Tensor, Tensor, Tensor] = kernel_backward(gradient, q, k, v, y, total, 0.0, False, attn_mask=added)
    return grads


def plain_meet_backward(
    gradient: Tensor, q: Tensor, y: Tensor, total: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`_meet_backward` where there is no such kernel (Dao et al. 2022, algorithm 4)."""
    weights = (_scores(q, k, mask) - total.unsqueeze(-1)).exp()
    above = (gradient @ v.mT - (gradient * y).sum(-1, keepdim=True)).to(weights.dtype)
    grad = (weights * above / math.sqrt(q.shape[-1])).to(q.dtype)
    return grad @ k, grad.mT @ q, weights.mT.to(q.dtype) @ gradient
