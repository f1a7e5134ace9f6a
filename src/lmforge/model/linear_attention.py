"""Linear attention: a running sum of keys times values in place of a look at each token before.

Katharopoulos et al. 2020, eq. 9: y_t = φ(q_t) Σ_j≤t φ(k_j) v_jᵀ / φ(q_t) Σ_j≤t φ(k_j), in chunks whose sums are
carried on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.config import GPTConfig, LayerShape
from lmforge.model.kernels.banded import room_like
from lmforge.model.rope import rotate

CHUNK = 64  # tokens of linear attention that meet directly
PIECE = 16  # chunks that are worked on at once, of all rows together


class Linear(nn.Module):
    """Linear attention. φ: elu(x) + 1 (Katharopoulos et al. 2020, eq. 7), or learned: softmax([xW; −xW]) (Zhang et al.
    2024, eq. 6)."""

    def __init__(self, config: GPTConfig, shape: LayerShape | None = None) -> None:
        super().__init__()
        shape = shape or config.shape_of(0)
        self.q_features: nn.Parameter | None = None
        self.k_features: nn.Parameter | None = None
        if config.feature_map == "learned":  # starts as the identity
            one = torch.eye(config.head_width)
            self.q_features = nn.Parameter(one.repeat(shape.heads, 1, 1))
            self.k_features = nn.Parameter(one.repeat(shape.kv_heads, 1, 1))

    def _features(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """(B,T,H,E) → (B,H,T,F), positive."""
        x = x.transpose(1, 2)
        if weight is None:
            positive: Tensor = _Positive.apply(x)  # type: ignore[no-untyped-call]
            return positive
        mapped = x @ weight.to(x.dtype)
        return torch.cat((mapped, -mapped), -1).softmax(-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """See `attention.Mixer`."""
        return self._whole(q, k, v, rotations, None, None)[0]

    def decode(self, q: Tensor, k: Tensor, v: Tensor, forward_ctx: Any, cache: Any) -> Tensor:
        """See `attention.Mixer`."""
        real = torch.arange(q.shape[1], device=q.device) < forward_ctx.lengths[:, None]
        y, state = self._whole(q, k, v, forward_ctx.rotations, cache.state, real)
        cache.state = state.to(cache.state.dtype)
        return y

    def _whole(
        self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, state: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        q, k = self._features(q, self.q_features), self._features(k, self.k_features)
        if real is not None:
            k = k * real[:, None, :, None]
        v = v.contiguous().transpose(1, 2)  # a view would keep queries and keys as they were before rotation
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return linear_attention(q, k, v, state)

    def new_cache(self, q: Tensor, k: Tensor, capacity: int, dtype: torch.dtype) -> LinearCache:
        """See `attention.Mixer`."""
        return LinearCache(self, q, dtype)

    def macs_per_token(self) -> int:
        """Multiplications of a token by the learned feature maps (`measure`)."""
        return sum(maps.numel() for maps in (self.q_features, self.k_features) if maps is not None)


class _Positive(torch.autograd.Function):
    """elu(x) + 1, of which the result alone is kept: its derivative is itself below 1, and 1 above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.elu(x) + 1
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        grad: Tensor = y.clamp(max=1).mul_(gradient)
        return grad


def linear_attention(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q, k (B,H,T,F), v (B,H,T,E) → y_t = Σ_j≤t (q_t·k_j) v_j / Σ_j≤t q_t·k_j (B,H,T,E), and the state after.

    The state (B,H,F,E+1): Σ k [v, 1]ᵀ of what came before. Within a chunk directly, from chunk to chunk through the
    state (Hua et al. 2022, section 3.3). Of what is made on the way nothing is kept: the backward pass makes it again,
    some chunks at a time.
    """
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3] + 1)
    result: tuple[Tensor, Tensor] = _InChunks.apply(q, k, v, state.to(torch.promote_types(q.dtype, torch.float32)))  # type: ignore[no-untyped-call]
    return result


class _InChunks(torch.autograd.Function):
    """See `linear_attention`. In single precision at least, as sums over all of the text are."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, weight = room_like(v), q.new_empty(*q.shape[:3], 1, dtype=state.dtype)
        states = []
        with torch.autocast(q.device.type, enabled=False):
            for piece in _pieces(q):
                states.append(state)
                queries, keys, values = _chunks(q[:, :, piece], k[:, :, piece], v[:, :, piece], state.dtype)
                before, state = _running(keys.transpose(-1, -2) @ values, state)
                sums = queries @ before + (queries @ keys.transpose(-1, -2)).tril_() @ values
                sums = sums.flatten(2, 3)[:, :, : y[:, :, piece].shape[2]]
                weight[:, :, piece] = sums[..., -1:]
                y[:, :, piece] = sums[..., :-1] / sums[..., -1:]
        ctx.save_for_backward(q, k, v, y, weight, *states)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, to_come: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, y, weight, *states = ctx.saved_tensors
        dq, dk, dv = (room_like(x) for x in (q, k, v))
        for piece, state in reversed(list(zip(_pieces(q), states, strict=True))):
            queries, keys, values = _chunks(q[:, :, piece], k[:, :, piece], v[:, :, piece], state.dtype)
            above = gradient[:, :, piece].to(state.dtype) / weight[:, :, piece]
            # of the sums: those over v, and that over ones
            above = torch.cat((above, -(above * y[:, :, piece]).sum(-1, keepdim=True)), -1)
            (above,) = _padded(above)
            before, _ = _running(keys.transpose(-1, -2) @ values, state)
            after, to_come = _running((queries.transpose(-1, -2) @ above).flip(2), to_come)
            after = after.flip(2)
            shares, grads = (queries @ keys.transpose(-1, -2)).tril_(), (above @ values.transpose(-1, -2)).tril_()
            for into, part in (
                (dq, above @ before.transpose(-1, -2) + grads @ keys),
                (dk, values @ after.transpose(-1, -2) + grads.transpose(-1, -2) @ queries),
                (dv, (keys @ after + shares.transpose(-1, -2) @ above)[..., :-1]),
            ):
                into[:, :, piece] = part.flatten(2, 3)[:, :, : into[:, :, piece].shape[2]]
        return dq, dk, dv, to_come


def _pieces(x: Tensor) -> list[slice]:
    """Tokens of x (B,H,T,·) that are worked on at once: on a CPU so few that what is made of them stays near it."""
    length = x.shape[2]
    size = CHUNK * max(1, PIECE // len(x)) if x.device.type == "cpu" else length
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def _padded(*parts: Tensor) -> list[Tensor]:
    """(B,H,t,·) each → (B,H,chunks,chunk,·), zeros after the last token."""
    length = parts[0].shape[2]
    chunk = min(CHUNK, length)
    return [F.pad(x, (0, 0, 0, -length % chunk)).unflatten(2, (-1, chunk)) for x in parts]


def _chunks(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values (B,H,t,·) in chunks, the values with a channel of ones, which gathers the
    denominator."""
    return _padded(q.to(dtype), k.to(dtype), F.pad(v.to(dtype), (0, 1), value=1.0))


def _running(own: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """own (B,H,chunks,F,W), carried (B,H,F,W) → for each chunk the sum of `carried` and what came before it; and the
    sum of all."""
    sums = torch.cat((carried.unsqueeze(2), own), 2).cumsum(2)
    return sums[:, :, :-1], sums[:, :, -1].clone()  # kept for the backward pass, without what it is a view of


class LinearCache:
    """The sums of one layer: state (B,H,F,E+1), whatever the length of the text."""

    def __init__(self, rule: Linear, q: Tensor, dtype: torch.dtype) -> None:
        """For as many rows and heads, and heads as wide, as q (B,T,H,E) has."""
        rows, _, heads, head_width = q.shape
        features = head_width * (1 if rule.q_features is None else 2)
        self.state = torch.zeros((rows, heads, features, head_width + 1), device=q.device, dtype=dtype)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self.state = self.state[rows]

    def joined(self, parts: Sequence[LinearCache]) -> LinearCache:
        """The rows of several caches of this layer, in order."""
        whole = copy.copy(self)
        whole.state = torch.cat([each.state for each in parts])
        return whole

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.state.nbytes
