"""Reformer's attention inside hash buckets (LSH), whose cost grows with the text's length only linearly.

Kitaev et al. 2020, section 2: queries are keys too. In each round a token falls into a bucket by random rotations, and
looks at the last `lsh_span` tokens of its bucket up to itself. Reformer cuts the tokens sorted by bucket into chunks,
and where the cuts fall depends on later tokens; here the span is counted back from each token, so that nothing depends
on what comes later and decoding equals the full pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.config import GPTConfig
from lmforge.model.kernels.banded import kernel, kernel_backward
from lmforge.model.rope import rotate

# added to a token's score of itself: taken only where there is nothing else (Kitaev et al. 2020, appendix A)
ITSELF = -100.0
MOST_SIDES = 64  # of one hash; more buckets are made as products of two


class LSH(nn.Module):
    """Attention inside hash buckets; k is the direction of q. Rotations are fixed when the model is made and saved with
    it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.span, self.rounds = config.lsh_span, config.lsh_rounds
        self.sides = bucket_sides(config)
        generator = torch.Generator().manual_seed(layer)
        shape = (self.rounds, config.head_width, sum(side // 2 for side in self.sides))
        self.hashes: Tensor
        self.register_buffer("hashes", torch.randn(shape, generator=generator, device="cpu"))

    @property
    def buckets(self) -> int:
        """Buckets of a round."""
        return math.prod(self.sides)

    @torch.no_grad()
    def buckets_of(self, q: Tensor) -> Tensor:
        """q (B,H,T,E) → the bucket of each token in each round (rounds,B,H,T): argmax of [xR; −xR], for each side
        (section 2, eq. 6)."""
        bucket = torch.zeros((self.rounds, *q.shape[:-1]), dtype=torch.long, device=q.device)
        begin = 0
        for side in self.sides:
            turned = torch.einsum("bhte,rec->rbhtc", q, self.hashes[:, :, begin : begin + side // 2].to(q.dtype))
            begin += side // 2
            bucket = bucket * side + (torch.cat((turned, -turned), -1).argmax(-1) if side > 1 else 0)
        return bucket

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """See `attention.Mixer`; `k` is `q`."""
        if rotations is not None:
            q = rotate(q, rotations)
        return self._whole(q.transpose(1, 2), v.transpose(1, 2))

    def _whole(self, q: Tensor, v: Tensor) -> Tensor:
        result: Tensor = _InBuckets.apply(q, F.normalize(q, dim=-1), v, self.buckets_of(q), self.span)  # type: ignore[no-untyped-call]
        return result

    def decode(self, q: Tensor, k: Tensor, v: Tensor, forward_ctx: Any, cache: Any) -> Tensor:
        """See `attention.Mixer`."""
        if forward_ctx.rotations is not None:
            q = rotate(q, forward_ctx.rotations)
        q, v, length = q.transpose(1, 2), v.transpose(1, 2), q.shape[1]
        real = torch.arange(length, device=q.device) < forward_ctx.lengths[:, None]
        keys = F.normalize(q, dim=-1)
        cache.put(keys, v, forward_ctx.positions, real)
        buckets = self.buckets_of(q)
        if forward_ctx.cache.extent == length:
            cache.fill(buckets, real)
            return self._whole(q, v)
        steps = [
            cache.look(q[:, :, t], buckets[..., t], forward_ctx.positions[:, t], real[:, t]) for t in range(length)
        ]
        return torch.stack(steps, 2)

    def new_cache(self, q: Tensor, k: Tensor, capacity: int, dtype: torch.dtype) -> LSHCache:
        """See `attention.Mixer`."""
        return LSHCache(self, q, capacity, dtype)


def bucket_sides(config: GPTConfig) -> tuple[int, ...]:
    """So many buckets that one holds about `lsh_span` tokens of a full context; many are made as products of two
    hashes."""
    wanted = math.ceil(config.context / config.lsh_span)
    if wanted <= 1:
        return (1,)
    return (2 * math.ceil(wanted / 2),) if wanted <= MOST_SIDES else (2 * math.ceil(math.sqrt(wanted) / 2),) * 2


class _InBuckets(torch.autograd.Function):
    """All rounds in one softmax: a key found in two rounds counts twice, as in Reformer's own merging by log-sums."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, buckets: Tensor, span: int) -> Tensor:
        out, total = (
            torch.zeros_like(v),
            torch.full(q.shape[:-1], float("-inf"), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device),
        )
        for bucket in buckets:
            sort = _Sorted(bucket, span, q.dtype)
            part, log_sum = _one_round(sort, q, k, v)
            joint = torch.logaddexp(total, log_sum)
            out = out * (total - joint).exp().unsqueeze(-1) + part * (log_sum - joint).exp().unsqueeze(-1)
            total = joint
        out = out.to(v.dtype)
        ctx.span = span
        ctx.save_for_backward(q, k, v, buckets, out, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, buckets, out, total = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for bucket in buckets:
            sort = _Sorted(bucket, ctx.span, q.dtype)
            queries, keys, values = sort.queries(q), sort.keys(k), sort.keys(v)
            if q.device.type == "cpu":
                parts = kernel_backward(
                    sort.queries(gradient),
                    queries,
                    keys,
                    values,
                    sort.queries(out),
                    sort.queries(total[..., None])[..., 0].contiguous(),
                    0.0,
                    False,
                    attn_mask=sort.mask,
                )
            else:
                parts = _plain_backward(
                    sort.queries(gradient),
                    queries,
                    keys,
                    values,
                    sort.queries(out),
                    sort.queries(total[..., None]),
                    sort.mask,
                )
            dq += sort.back(parts[0])
            dk += sort.back_keys(parts[1])
            dv += sort.back_keys(parts[2])
        return dq, dk, dv, None, None


class _Sorted:
    """Tokens of one round in the order of their buckets, cut into pieces of `span`; each piece meets itself and the
    piece before."""

    def __init__(self, bucket: Tensor, span: int, dtype: torch.dtype) -> None:
        self.shape, self.span = bucket.shape, span
        length = bucket.shape[-1]
        self.order = bucket.argsort(dim=-1, stable=True)
        self.places = torch.empty_like(self.order).scatter_(
            -1, self.order, torch.arange(length, device=bucket.device).expand_as(self.order)
        )
        self.missing = -length % span
        # (N·pieces,1,span)
        ranked = F.pad(bucket.gather(-1, self.order), (0, self.missing), value=-1).view(-1, 1, span)
        pieces = (length + self.missing) // span
        before = F.pad(ranked.view(-1, pieces, span)[:, :-1], (0, 0, 1, 0), value=-2).reshape(-1, 1, span)
        at = torch.arange(span, device=bucket.device)
        distance = at[:, None] + span - torch.arange(2 * span, device=bucket.device)
        same = torch.cat((before, ranked), -1) == ranked.transpose(1, 2)
        seen = same & (distance >= 0) & (distance < span)
        # (N·pieces,1,span,2·span)
        self.mask = torch.where(seen, ITSELF * (distance == 0).to(dtype), float("-inf")).unsqueeze(1)

    def _pieces(self, x: Tensor) -> Tensor:
        """(B,H,T,W) → (N, pieces, span, W)."""
        ordered = x.gather(2, self.order[..., None].expand(-1, -1, -1, x.shape[-1]))
        return F.pad(ordered, (0, 0, 0, self.missing)).view(
            -1, (x.shape[2] + self.missing) // self.span, self.span, x.shape[-1]
        )

    def queries(self, x: Tensor) -> Tensor:
        """(B,H,T,W) → (N·pieces,1,span,W)."""
        return self._pieces(x).flatten(0, 1).unsqueeze(1)

    def keys(self, x: Tensor) -> Tensor:
        """(B,H,T,W) → (N·pieces,1,2·span,W)."""
        pieces = self._pieces(x)
        return torch.cat((F.pad(pieces[:, :-1], (0, 0, 0, 0, 1, 0)), pieces), 2).flatten(0, 1).unsqueeze(1)

    def back(self, x: Tensor) -> Tensor:
        """Undo `queries`."""
        flat = x.reshape(*self.shape[:2], -1, x.shape[-1])
        return flat.gather(2, self.places[..., None].expand(-1, -1, -1, x.shape[-1]))

    def back_keys(self, x: Tensor) -> Tensor:
        """Sum what each key got as a piece's own and as the piece before."""
        pieces = x.reshape(self.shape[0] * self.shape[1], -1, 2, self.span, x.shape[-1])
        own = pieces[:, :, 1].clone()
        own[:, :-1] += pieces[:, 1:, 0]
        return self.back(own)


def _one_round(sort: _Sorted, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B,H,T,E) and log-sum of exponentials (B,H,T) of one round."""
    queries, keys, values = sort.queries(q), sort.keys(k), sort.keys(v)
    if q.device.type == "cpu":
        part, log_sum = kernel(queries, keys, values, 0.0, False, attn_mask=sort.mask)
    else:
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1]) + sort.mask
        log_sum = scores.logsumexp(-1)
        part = (scores - log_sum.unsqueeze(-1)).exp() @ values
    return sort.back(part), sort.back(log_sum.unsqueeze(-1))[..., 0]


def _plain_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, total: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel's gradient where there is no such kernel: weights of the joint softmax, made again (Dao et al. 2022,
    algorithm 4)."""
    scale = 1 / math.sqrt(q.shape[-1])
    weights = (q @ k.transpose(-1, -2) * scale + mask - total).exp()
    grad = weights * (gradient @ v.transpose(-1, -2) - (gradient * out).sum(-1, keepdim=True)) * scale
    return grad @ k, grad.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ gradient


class LSHCache:
    """All keys and values, and for each round and bucket the positions of its last `lsh_span` tokens: a step reads
    rounds × span keys.

    store (2,B,H,capacity+1,E); table (rounds,B,H,buckets+1,span), −1 where there is none; count (rounds,B,H,buckets+1)
    tokens so far. The last slot and the last bucket take padding.
    """

    def __init__(self, rule: LSH, q: Tensor, capacity: int, dtype: torch.dtype) -> None:
        """For as many rows and heads, and heads as wide, as q (B,T,H,E) has."""
        rows, _, heads, head_width = q.shape
        self.span = rule.span
        self.store = torch.zeros((2, rows, heads, capacity + 1, head_width), device=q.device, dtype=dtype)
        shape = (rule.rounds, rows, heads, rule.buckets + 1)
        self.table = torch.full((*shape, self.span), -1, device=q.device)
        self.count = torch.zeros(shape, dtype=torch.long, device=q.device)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.store, self.table, self.count = self.store[:, rows], self.table[:, rows], self.count[:, rows]

    def joined(self, parts: Sequence[LSHCache]) -> LSHCache:
        """The rows of several caches of this layer, in order."""
        whole = copy.copy(self)
        for name in ("store", "table", "count"):
            setattr(whole, name, torch.cat([getattr(each, name) for each in parts], 1))
        return whole

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.store.nbytes + self.table.nbytes + self.count.nbytes

    def put(self, k: Tensor, v: Tensor, positions: Tensor, real: Tensor) -> None:
        """Keys and values (B,H,T,E) to their positions (B,T)."""
        view = self.store.permute(1, 3, 0, 2, 4)
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        view[rows, torch.where(real, positions, view.shape[1] - 1)] = (
            torch.stack((k, v)).permute(1, 3, 0, 2, 4).to(view.dtype)
        )

    def fill(self, buckets: Tensor, real: Tensor) -> None:
        """The table of whole texts: buckets (rounds,B,H,T), real (B,T)."""
        length, last = buckets.shape[-1], self.count.shape[-1] - 1
        buckets = buckets.masked_fill(~real[:, None], last)
        order = buckets.argsort(dim=-1, stable=True)
        ranked = buckets.gather(-1, order)
        self.count.scatter_add_(-1, buckets, torch.ones_like(buckets))
        begins = self.count.cumsum(-1) - self.count
        rank = torch.arange(length, device=buckets.device) - begins.gather(-1, ranked)
        kept = (rank >= self.count.gather(-1, ranked) - self.span) & (ranked < last)
        slot = torch.where(kept, ranked, last) * self.span + rank % self.span
        self.table.flatten(-2).scatter_(-1, slot, order)

    def look(self, q: Tensor, bucket: Tensor, position: Tensor, real: Tensor) -> Tensor:
        """Take in one token a row, whose key is stored, and answer it: q (B,H,E), bucket (rounds,B,H), position (B,) →
        (B,H,E)."""
        bucket = bucket.masked_fill(~real[:, None], self.count.shape[-1] - 1)[..., None]
        count = self.count.gather(-1, bucket)
        self.count.scatter_add_(-1, bucket, torch.ones_like(bucket))
        self.table.flatten(-2).scatter_(
            -1, bucket * self.span + count % self.span, position[:, None, None].expand_as(bucket).contiguous()
        )
        near = self.table.gather(3, bucket[..., None].expand(-1, -1, -1, -1, self.span))  # (rounds,B,H,1,span)
        near = near.permute(1, 2, 0, 3, 4).flatten(2)
        index = near.clamp(min=0)[..., None].expand(-1, -1, -1, q.shape[-1])
        keys, values = self.store.gather(3, index.expand(2, -1, -1, -1, -1))
        own = near == position[:, None, None]
        mask = torch.where(near < 0, float("-inf"), ITSELF * own.to(q.dtype))
        y: Tensor = F.scaled_dot_product_attention(
            q[:, :, None], keys.to(q.dtype), values.to(q.dtype), attn_mask=mask[:, :, None]
        )
        return y[:, :, 0]
