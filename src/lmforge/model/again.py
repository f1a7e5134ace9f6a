"""Activations made again in the backward pass, so that they need not be kept: recomputed blocks and reversible blocks.

    recomputed   kept of a block: what enters it and what its attention mixed (not for kinds that cannot use it); attention is not run again,
                 only its projections, norms and the feed-forward part but for its last product (selective recomputation: Korthikanti
                 et al. 2022, section 5)
    reversible   kept of the whole stack: its last activations; each block is undone (Gomez et al. 2017)
    both         kept of the whole stack its last activations, and of each block what its attention mixed, for the kinds that can use it

The feed-forward part looks at one token at a time, so both run it, and its gradient, `TOKENS` at a time (Kitaev et al. 2020, section 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lmforge.model.experts import Experts
from lmforge.model.functions import FeedForward

TOKENS = 2048  # of the feed-forward part at once: its hidden layer then stays near the processor
Found = dict[int, Tensor]  # gradients by parameter


def recomputed(x: Tensor, block: Any, place: Any) -> Tensor:
    """`block(x, place)`, keeping as little as said above: x (B,T,D) → (B,T,D)."""
    result: Tensor = _Recomputed.apply(x, block, place, *_trained(block))  # type: ignore[no-untyped-call]
    return result


def reversible(x: Tensor, blocks: list[Any], place: Any) -> Tensor:
    """Blocks over two streams: a ← a + Attention(b), b ← b + FF(a), from a = b = x to their mean (Gomez et al. 2017, eq. 6 and 7).

    Each step can be undone, so the backward pass makes the activations again from the last ones, and memory does not grow with depth.
    """
    if not torch.is_grad_enabled() or place.cache is not None:
        return _run(x, blocks, place)[2]
    result: Tensor = _Reversible.apply(x, blocks, place, *_trained(*blocks))  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    """See `recomputed`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any, place: Any, *parameters: Tensor) -> Tensor:
        mixed = block.attention.mix(block.attention_norm(x), place)
        ctx.save_for_backward(x, mixed if block.attention.recalls else None)
        ctx.block, ctx.place, ctx.parameters, ctx.cast = block, place, parameters, _cast_of(x)
        y: Tensor = x + block.attention.out(mixed)
        for some in _pieces(y, block):
            some += block.feed(some, place)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mixed = ctx.saved_tensors
        block, found = ctx.block, Found()
        attended = _Attended(ctx, block, x, mixed)
        slope = gradient.clone(memory_format=torch.contiguous_format)
        for some, into in zip(_pieces(attended.added_to(x), block), _pieces(slope, block), strict=True):
            into += _fed(ctx, block, some, into, found)
        slope += attended.gradient(slope, found)
        return slope, None, None, *(found.get(id(parameter)) for parameter in ctx.parameters)


class _Attended:
    """A block's first branch, run again on x in two halves: `change`, what it added, needs its output matrix alone where `mixed` was kept."""

    def __init__(self, ctx: Any, block: Any, x: Tensor, mixed: Tensor | None) -> None:
        self.ctx, self.block = ctx, block
        self.inner, self.again = x.detach().requires_grad_(), None
        with _as_before(ctx):
            if mixed is None:
                self.again = mixed = self._mix(None)
            self.mixed = mixed.detach().requires_grad_()
            self.added = block.attention.out(_beyond(self.mixed))

    def _mix(self, known: Tensor | None) -> Any:
        return self.block.attention.mix(self.block.attention_norm(_beyond(self.inner)), self.ctx.place, known)

    @property
    def change(self) -> Tensor:
        """What the branch added to x's stream (B,T,D)."""
        result: Tensor = self.added.detach()
        return result

    def added_to(self, x: Tensor) -> Tensor:
        """x + `change`, written over `change` where its numbers are as exact: nothing else needs it."""
        return self.change.add_(x) if self.added.dtype == x.dtype else x + self.change

    def gradient(self, slope: Tensor, found: Found) -> Tensor:
        """From the gradient of what was added, that of x; once only."""
        attention = self.block.attention
        down = _gradients(self.added, self.mixed, (attention.out,), slope, found)
        del self.added
        if self.again is None:
            with _as_before(self.ctx):
                self.again = self._mix(self.mixed.detach())
        parts = [part for name, part in attention.named_children() if name != "out"]
        return _gradients(self.again, self.inner, (self.block.attention_norm, *parts), down, found)


def _run(x: Tensor, blocks: list[Any], place: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = b = x
    for block in blocks:
        a = a + block.attend(b, place)
        b = b + block.feed(a, place)
    return a, b, (a + b) / 2


class _Reversible(torch.autograd.Function):
    """See `reversible`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: list[Any], place: Any, *parameters: Tensor) -> Tensor:
        a, b, kept = x.clone(), x.clone(), []
        for block in blocks:
            mixed = block.attention.mix(block.attention_norm(b), place)
            a += block.attention.out(mixed)
            kept.append(mixed if block.attention.config.recompute and block.attention.recalls else None)
            del mixed
            for some, other in zip(_pieces(a, block), _pieces(b, block), strict=True):
                other += block.feed(some, place)
        ctx.save_for_backward(a, b, *kept)
        ctx.blocks, ctx.place, ctx.parameters, ctx.cast = blocks, place, parameters, _cast_of(x)
        return (a + b) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, *kept = ctx.saved_tensors  # a and b are written to: a second backward pass over the same graph is refused by autograd
        da, db = gradient / 2, gradient / 2
        found = Found()
        for block in reversed(ctx.blocks):
            for some, other, slope, above in zip(*(_pieces(x, block) for x in (a, b, da, db)), strict=True):
                change, more = _branch(ctx, block.feed, (block.ff_norm, block.ff), some, above, found)
                other -= change
                slope += more
            attended = _Attended(ctx, block, b, kept.pop())
            a -= attended.change
            db += attended.gradient(da, found)
        return da + db, None, None, *(found.get(id(parameter)) for parameter in ctx.parameters)


def _pieces(x: Tensor, block: Any) -> Iterator[Tensor]:
    """x (B,T,D), contiguous, `TOKENS` tokens at a time, as views (1,t,D); whole where a token's part depends on the others (routers)."""
    flat = x.view(1, -1, x.shape[-1])
    yield from (x,) if isinstance(block.ff, Experts) else flat.split(TOKENS, 1)


def _branch(
    ctx: Any, branch: Callable[[Tensor, Any], Tensor], parts: tuple[nn.Module, ...], x: Tensor, gradient: Tensor, found: Found
) -> tuple[Tensor, Tensor]:
    """Run a branch again on x: what it added, and the gradient of x; those of the parts' parameters are added to `found`."""
    with _as_before(ctx):
        x = x.detach().requires_grad_()
        change = branch(_beyond(x), ctx.place)
    slope = _gradients(change, x, parts, gradient, found)
    return change.detach(), slope


def _fed(ctx: Any, block: Any, x: Tensor, gradient: Tensor, found: Found) -> Tensor:
    """The gradient of x from that of what the second branch made of it. That itself is not wanted, so its last product is left out."""
    ff, down = block.ff, getattr(block.ff, "down", None)
    if not isinstance(ff, FeedForward) or type(down) is not nn.Linear:
        return _branch(ctx, block.feed, (block.ff_norm, ff), x, gradient, found)[1]
    with _as_before(ctx):
        x = x.detach().requires_grad_()
        hidden = ff.activated(ff.up(block.ff_norm(_beyond(x))))
    above, below = gradient.to(hidden.dtype).flatten(0, 1), hidden.detach().flatten(0, 1)
    if down.weight.requires_grad:
        _add(found, down.weight, (above.t() @ below).to(down.weight.dtype))
    if down.bias is not None and down.bias.requires_grad:
        _add(found, down.bias, above.sum(0).to(down.bias.dtype))
    return _gradients(hidden, x, (block.ff_norm, ff.up), (above @ down.weight.to(above.dtype)).view_as(hidden), found)


def _gradients(y: Tensor, x: Tensor, parts: tuple[nn.Module, ...], gradient: Tensor, found: Found) -> Tensor:
    """The gradient of x; those of the parts' parameters are added to `found`."""
    wanted = _trained(*parts)
    slope, *rest = torch.autograd.grad(y, [x, *wanted], gradient.to(y.dtype), allow_unused=True)
    for parameter, new in zip(wanted, rest, strict=True):
        if new is not None:
            _add(found, parameter, new)
    return slope


def _add(found: Found, parameter: Tensor, new: Tensor) -> None:
    if id(parameter) in found:
        found[id(parameter)] += new
    else:
        found[id(parameter)] = new


def _beyond(leaf: Tensor) -> Tensor:
    """The same, one node of the graph further: hooks that follow modules cannot be put on leaves inside a backward pass."""
    return leaf.view_as(leaf)


def _trained(*modules: Any) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def _cast_of(x: Tensor) -> tuple[str, torch.dtype, bool]:
    """Whether autocast is on where x is, and to what."""
    kind = x.device.type
    return kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)


@contextlib.contextmanager
def _as_before(ctx: Any) -> Iterator[None]:
    """Gradients on, and autocast as it was in the forward pass."""
    kind, dtype, on = ctx.cast
    with torch.enable_grad(), torch.autocast(kind, dtype, enabled=on):
        yield
