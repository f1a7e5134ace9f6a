"""The softmax kinds of attention, and the keys and values that they keep for decoding.

What query t sees, by kind:

    full      every key up to its own
    window    the last `window` keys
    strided   the last `window` keys, and earlier those at positions 0, stride, 2·stride, …
              (Child et al. 2019, section 4.3)
    pooled    the last `pool` keys, and one pooled key and value for each complete earlier block of `pool` tokens
    sparse    the last `window` keys, the strided ones before them, and a pooled key and value for each complete block
              of `pool` tokens whose first token is no longer among the last `window`: every earlier token is reached,
              all in one softmax

Pooled keys are pooled before rotation and rotated to the middle of their block.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.model.cache import ForwardContext, LayerCache
from lmforge.model.config import GPTConfig
from lmforge.model.kernels import causal_bf16
from lmforge.model.kernels.banded import banded_attention, with_means, with_strided
from lmforge.model.rope import rotate


class Softmax(nn.Module):
    """The softmax kinds: a band of recent keys, and before it strided and pooled ones. `window` None: everything is
    recent."""

    def __init__(self, config: GPTConfig, kind: str, kv_heads: int | None = None) -> None:
        super().__init__()
        self.window = {"full": None, "pooled": config.pool}.get(kind, config.window)
        self.stride = config.stride if kind in ("strided", "sparse") else None
        self.pool = config.pool if kind in ("pooled", "sparse") else None
        self.pooling = config.pooling
        self.pool_keys: nn.Parameter | None = None
        self.pool_values: nn.Parameter | None = None
        if self.pool and self.pooling == "conv":  # one weight per place in the block and channel; starts as the mean
            shape = (self.pool, kv_heads or config.kv_heads, config.head_width)
            self.pool_keys, self.pool_values = (nn.Parameter(torch.full(shape, 1 / self.pool)) for _ in range(2))

    def layout(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """For a text of `length` tokens: the position each extra is seen from (M,), ascending; where each strided key
        stands among the extras; where each pooled one does."""
        assert self.window is not None
        strided = torch.arange(0, length if self.stride else 0, self.stride or 1) + self.window
        first = torch.arange(length // self.pool if self.pool else 0) * (self.pool or 1)
        pooled = torch.maximum(first + self.window, first + (self.pool or 0))
        seen, order = torch.cat((strided, pooled)).sort(stable=True)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(len(order))
        return seen, slots[: len(strided)], slots[len(strided) :]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """See `attention.Mixer`."""
        k, v, pooled = self._with_pooled(k, v)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        return self._whole(q, k, v, pooled, rotations, known)

    def _with_pooled(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Keys (before rotation) and values, and what `pooled` makes of them where the band does not reach over the
        whole text."""
        if not self.pool or self.window is None or k.shape[1] <= self.window:
            return k, v, None
        if self.pooling != "mean":
            return k, v, self.pooled(k, v)
        k, pooled_k = with_means(k, self.pool)
        v, pooled_v = with_means(v, self.pool)
        return k, v, (pooled_k, pooled_v)

    def _whole(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pooled: tuple[Tensor, Tensor] | None,
        rotations: Tensor | None,
        known: Tensor | None = None,
    ) -> Tensor:
        length, groups = q.shape[1], q.shape[2] // k.shape[2]
        if self.window is None or length <= self.window:
            if causal_bf16.suits(q, k):
                return causal_bf16.causal_attention(q, k, v).transpose(1, 2)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
        seen, strided, blocks = self.layout(length)
        parts_k, parts_v = [], []
        if self.stride:
            k, strided_k = with_strided(k, self.stride)
            v, strided_v = with_strided(v, self.stride)
            parts_k.append(strided_k)
            parts_v.append(strided_v)
        if self.pool and pooled is not None:
            pooled_k, pooled_v = pooled
            if rotations is not None:
                pooled_k = rotate(pooled_k, rotations[self.pool // 2 :: self.pool][: pooled_k.shape[1]])
            parts_k.append(pooled_k)
            parts_v.append(pooled_v)
        seen = seen[seen < length].to(q.device)
        order = torch.cat((strided, blocks)).argsort()[: len(seen)].to(q.device)
        none = k.detach()[:, :0]
        extra_k, extra_v = (torch.cat((none, *parts), 1)[:, order] for parts in (parts_k, parts_v))
        q, k, v, extra_k, extra_v = (x.transpose(1, 2) for x in (q, k, v, extra_k, extra_v))
        if groups > 1:
            k, v, extra_k, extra_v = (x.repeat_interleave(groups, 1) for x in (k, v, extra_k, extra_v))
        return banded_attention(q, k, v, self.window, extra_k, extra_v, seen, known)

    def pooled(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (before rotation) and values (B,T,kv_heads,E) → one of each for every complete block
        (B,T//pool,kv_heads,E)."""
        assert self.pool
        if self.pooling == "conv":
            weights: list[Tensor | None] = list(
                self.pool_weights(torch.arange(self.pool, device=k.device))[:, None, None]
            )
        else:
            weights = [None, None]
        key, value = (self._one_a_block(x, pool_weights) for x, pool_weights in zip((k, v), weights, strict=True))
        return key, value

    def _one_a_block(self, x: Tensor, pool_weights: Tensor | None) -> Tensor:
        """x (B,T,kv_heads,E) → (B,T//pool,kv_heads,E); `pool_weights` (1,1,pool,kv_heads,E) where pooling is
        learned."""
        assert self.pool
        blocks = x[:, : x.shape[1] // self.pool * self.pool].unflatten(1, (-1, self.pool))
        one: Tensor = (
            (blocks * pool_weights).sum(2)
            if pool_weights is not None
            else blocks.amax(2)
            if self.pooling == "max"
            else blocks.mean(2)
        )
        return one

    def pool_weights(self, offsets: Tensor) -> Tensor:
        """What tokens at these places of their block contribute to its pooled key and value: (…) → (2,…,kv_heads,E)."""
        assert self.pool
        if self.pool_keys is None or self.pool_values is None:
            return torch.full((2, *offsets.shape, 1, 1), 1 / self.pool, device=offsets.device)
        return torch.stack((self.pool_keys, self.pool_values))[:, offsets]

    def decode(self, q: Tensor, k: Tensor, v: Tensor, forward_ctx: ForwardContext, cache: LayerCache) -> Tensor:
        """See `attention.Mixer`."""
        assert isinstance(cache, SoftmaxCache)
        assert forward_ctx.cache is not None
        plain = k
        if forward_ctx.rotations is not None:
            q, k = rotate(q, forward_ctx.rotations), rotate(k, forward_ctx.rotations)
        groups, length = q.shape[2] // k.shape[2], q.shape[1]
        if forward_ctx.cache.extent == length:  # nothing before these tokens
            pooled = self._with_pooled(plain, v)[2]
            y = self._whole(q, k, v, pooled, None if forward_ctx.table is None else forward_ctx.table[:length])
            cache.write(self, k, v, plain, forward_ctx)
            return y
        if self.window is None or length == 1:
            cache.write(self, k, v, plain, forward_ctx)
            if length == 1 and forward_ctx.cache.by_row is not None:
                return cache.each_alone(q.transpose(1, 2), forward_ctx.cache.by_row)
            keys, values, mask = cache.all(forward_ctx)
        else:
            cache.write_extras(self, k, v, plain, forward_ctx)
            keys, values, mask = cache.beside(k, v, forward_ctx)
            cache.write_band(k, v, forward_ctx)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2), keys.to(q.dtype), values.to(q.dtype), attn_mask=mask, enable_gqa=groups > 1
        )

    def new_cache(self, q: Tensor, k: Tensor, capacity: int, dtype: torch.dtype) -> SoftmaxCache:
        """See `attention.Mixer`."""
        return SoftmaxCache(self, k, capacity, dtype)


def saves_attention(config: GPTConfig, kind: str) -> bool:
    """Whether what a layer mixed is kept where activations are made again: it spares the banded kinds their softmax,
    which takes longer than their projections (4·D·keys operations against 8·D²) where a query meets more than 2·D
    keys."""
    rule = Softmax(config, kind) if kind not in ("lsh", "linear") else None
    if rule is None or rule.window is None:
        return False
    return rule.window + sum(config.context // each for each in (rule.stride, rule.pool) if each) > 2 * config.d_model


class SoftmaxCache:
    """Keys and values of one layer: a ring of the last `window` tokens, then the extras; nothing else is kept.

    store (2,B,kv_heads,window+M+1,E): keys and values; the last slot takes what is not to be kept. scales
    (2,B,kv_heads,window+M+1): what 8-bit ones are multiplied by. partial
    (2,B,kv_heads,E): the pooled key (before rotation) and value of the block that is not complete yet.
    """

    def __init__(self, rule: Softmax, k: Tensor, capacity: int, dtype: torch.dtype) -> None:
        """For as many rows and heads, and heads as wide, as k (B,T,kv_heads,E) has."""
        rows, _, kv_heads, head_width = k.shape
        self.window = capacity if rule.window is None else min(rule.window, capacity)
        seen, strided, pooled = (
            rule.layout(capacity) if rule.window is not None else (torch.empty(0, dtype=torch.long),) * 3
        )
        self.seen_list = seen.tolist()
        self.seen = torch.cat((torch.arange(self.window), seen)).to(k.device)
        self.strided, self.pooled = strided.to(k.device), pooled.to(k.device)
        shape = (2, rows, kv_heads, len(self.seen) + 1, head_width)
        self.store = torch.zeros(shape, device=k.device, dtype=dtype)
        small = dtype == torch.int8
        self.scales = torch.zeros(shape[:-1], device=k.device) if small else None
        exact = torch.float32 if small else dtype
        self.partial = torch.zeros((2, rows, kv_heads, head_width), device=k.device, dtype=exact) if rule.pool else None

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.store = self.store[:, rows]
        self.scales = None if self.scales is None else self.scales[:, rows]
        self.partial = None if self.partial is None else self.partial[:, rows]

    def joined(self, parts: Sequence[SoftmaxCache]) -> SoftmaxCache:
        """The rows of several caches of this layer, in order."""
        whole = copy.copy(self)
        whole.store = torch.cat([each.store for each in parts], 1)
        scales = [each.scales for each in parts if each.scales is not None]
        whole.scales = torch.cat(scales, 1) if scales else None
        partial = [each.partial for each in parts if each.partial is not None]
        whole.partial = torch.cat(partial, 1) if partial else None
        return whole

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(each.nbytes for each in (self.store, self.scales, self.partial) if each is not None)

    def read(self, rows: slice, slots: slice) -> Tensor:
        """What these rows hold in these slots, (2,B,kv_heads,S,E), as floats."""
        held = self.store[:, rows, :, slots]
        return held if self.scales is None else held * self.scales[:, rows, :, slots, None]

    def write(self, rule: Softmax, k: Tensor, v: Tensor, plain: Tensor, forward_ctx: ForwardContext) -> None:
        """Take in tokens: k (rotated), v, plain (k before rotation), each (B,T,kv_heads,E)."""
        self.write_extras(rule, k, v, plain, forward_ctx)
        self.write_band(k, v, forward_ctx)

    def write_band(self, k: Tensor, v: Tensor, forward_ctx: ForwardContext) -> None:
        """The last `window` real tokens of each row into the ring."""
        positions, kept = forward_ctx.positions, _real(forward_ctx)
        assert positions is not None
        if k.shape[1] > self.window:
            assert forward_ctx.lengths is not None
            kept = kept & (torch.arange(k.shape[1], device=k.device) >= forward_ctx.lengths[:, None] - self.window)
        self._put(positions % self.window, kept, k, v)

    def write_extras(self, rule: Softmax, k: Tensor, v: Tensor, plain: Tensor, forward_ctx: ForwardContext) -> None:
        """Strided tokens as they are, and the pooled keys and values of the blocks that these tokens go on or begin."""
        positions, real = forward_ctx.positions, _real(forward_ctx)
        assert positions is not None
        if rule.stride and len(self.strided):
            index = (positions // rule.stride).clamp(max=len(self.strided) - 1)
            self._put(self.window + self.strided[index], real & (positions % rule.stride == 0), k, v)
        if not rule.pool:
            return
        assert forward_ctx.cache is not None
        if forward_ctx.cache.extent == k.shape[1]:  # whole texts: all blocks at once, and what is left over
            if len(self.pooled) and k.shape[1] >= rule.pool:
                pooled_k, pooled_v = rule.pooled(plain, v)
                blocks = torch.arange(pooled_k.shape[1], device=k.device)
                if forward_ctx.table is not None:
                    pooled_k = rotate(pooled_k, forward_ctx.table[blocks * rule.pool + rule.pool // 2])
                slots = (self.window + self.pooled[blocks]).expand(k.shape[0], -1)
                self._put(slots, torch.ones_like(slots, dtype=torch.bool), pooled_k, pooled_v)
            self._leave_over(rule, plain, v, forward_ctx)
            return
        for step in range(k.shape[1]):
            self._pool(rule, plain[:, step], v[:, step], positions[:, step], real[:, step], forward_ctx.table)

    def _leave_over(self, rule: Softmax, k: Tensor, v: Tensor, forward_ctx: ForwardContext) -> None:
        """`partial` from the tokens after the last complete block of each row of whole texts."""
        assert rule.pool
        assert forward_ctx.lengths is not None
        assert self.partial is not None
        offsets = torch.arange(rule.pool, device=k.device)
        at = forward_ctx.lengths[:, None] // rule.pool * rule.pool + offsets
        outside = (at >= forward_ctx.lengths[:, None])[None, :, :, None, None]
        rows, index = torch.arange(len(at), device=k.device)[:, None], at.clamp(max=k.shape[1] - 1)
        rest = torch.stack((k[rows, index], v[rows, index])).to(self.partial.dtype)
        if rule.pooling == "max":
            self.partial = rest.masked_fill(outside, float("-inf")).amax(2)
        else:
            self.partial = (rest * rule.pool_weights(offsets)[:, None]).masked_fill(outside, 0).sum(2)

    def _pool(self, rule: Softmax, k: Tensor, v: Tensor, at: Tensor, real: Tensor, table: Tensor | None) -> None:
        """Take one token a row (B,kv_heads,E) at position `at` (B,) into its block; what the block has so far goes to
        the block's slot."""
        assert rule.pool
        assert self.partial is not None
        new, begins = torch.stack((k, v)).to(self.partial.dtype), (at % rule.pool == 0)[None, :, None, None]
        if rule.pooling == "max":
            grown = torch.where(begins, new, torch.maximum(self.partial, new))
        else:
            grown = self.partial.masked_fill(begins, 0) + new * rule.pool_weights(at % rule.pool)
        self.partial = torch.where(real[None, :, None, None], grown, self.partial)
        if not len(self.pooled):
            return
        block, (key, value) = at // rule.pool, self.partial
        if table is not None:
            key = rotate(key[:, None], table[block * rule.pool + rule.pool // 2][:, None])[:, 0]
        slots = self.window + self.pooled[block.clamp(max=len(self.pooled) - 1)]
        self._put(slots[:, None], (real & (block < len(self.pooled)))[:, None], key[:, None], value[:, None])

    def _put(self, slots: Tensor, kept: Tensor, k: Tensor, v: Tensor) -> None:
        """k, v (B,T,kv_heads,E) to slots (B,T), those not `kept` to the last."""
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        view, new = self.store.permute(1, 3, 0, 2, 4), torch.stack((k, v), 2)
        slots = torch.where(kept, slots, view.shape[1] - 1)
        if self.scales is not None:  # 127 levels on each side of the largest of a head's channels
            most = new.float().abs().amax(-1).clamp(min=1e-30)
            self.scales.permute(1, 3, 0, 2)[rows, slots] = most / 127.0
            new = (new.float() * (127.0 / most)[..., None]).round()
        view[rows, slots] = new.to(view.dtype)

    def _count(self, extent: int) -> int:
        """Slots that a text of `extent` tokens has filled and may see."""
        return extent if extent <= self.window else self.window + bisect.bisect_left(self.seen_list, extent)

    def all(self, forward_ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """Everything held, after these tokens were taken in: keys, values (B,kv_heads,S,E) and which of them each query
        sees (B,1,T,S)."""
        assert forward_ctx.cache is not None
        assert forward_ctx.positions is not None
        count = self._count(forward_ctx.cache.extent)
        alone = forward_ctx.positions.numel() == 1  # the only row is the longest: it sees all there is
        mask = None if alone else (forward_ctx.positions[:, :, None] >= self.seen[:count])[:, None]
        keys, values = self.read(slice(None), slice(count))
        return keys, values, mask

    def each_alone(self, q: Tensor, before: Sequence[int]) -> Tensor:
        """One query a row, q (B,H,1,E), of which row i stands after `before[i]` tokens → (B,H,1,E): each row in a call
        of its own over what it sees, as if there were no other."""
        shared = q.shape[1] > self.store.shape[2]
        answers = []
        for row, (own, tokens) in enumerate(zip(q.split(1), before, strict=True)):
            key, value = self.read(slice(row, row + 1), slice(self._count(tokens + 1))).to(q.dtype)
            answers.append(F.scaled_dot_product_attention(own, key, value, enable_gqa=shared))
        return torch.cat(answers)

    def beside(self, k: Tensor, v: Tensor, forward_ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """The ring as it was before these tokens, the tokens themselves, and the extras: as `all`."""
        positions, cache = forward_ctx.positions, forward_ctx.cache
        assert positions is not None
        assert cache is not None
        last = cache.lengths[:, None] - 1
        # the position in each slot; negative: none yet
        ring = last - (last - torch.arange(self.window, device=k.device)) % self.window
        count = self._count(cache.extent)
        seen = self.seen[self.window : count]
        reach = torch.cat((ring, positions), 1)[:, None]  # (B,1,window+T)
        query = positions[:, :, None]
        band = (reach >= 0) & (reach <= query) & (query - reach < self.window)
        mask = torch.cat((band, query >= seen), 2)[:, None]
        every = slice(None)
        before = self.read(every, slice(self.window))
        extras = self.read(every, slice(self.window, max(count, self.window)))
        keys, values = torch.cat((before, torch.stack((k, v)).transpose(2, 3).to(before.dtype), extras), 3)
        return keys, values, mask


def _real(forward_ctx: ForwardContext) -> Tensor:
    """(B,T): which tokens are no padding."""
    assert forward_ctx.positions is not None
    assert forward_ctx.lengths is not None
    return (
        torch.arange(forward_ctx.positions.shape[1], device=forward_ctx.positions.device) < forward_ctx.lengths[:, None]
    )
