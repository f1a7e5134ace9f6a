"""Activations made again in the backward pass, so that they need not be kept: recomputed blocks and reversible blocks.

    recomputed   kept of a block: what enters it and what its attention mixed (not for kinds that cannot use it);
                 attention is not run again, only its projections, norms and the feed-forward part but for its last
                 product (selective recomputation: Korthikanti et al. 2022, section 5)
    reversible   kept of the whole stack: its last activations; each block is undone (Gomez et al. 2017)
    both         kept of the whole stack its last activations, and of each block what its attention mixed, for the kinds
                 that can use it

These ways cut blocks open and read weights. Where that would pass by someone (hooks on modules, weights spread over
devices: `hooks`), and for blocks that lack a part, have norms after their branches or add both branches at once
(`GPTConfig`), each block is called whole, and called again in the backward pass
(Chen et al. 2016, "Training deep nets with sublinear memory cost", section 3.1): what enters each is kept.

The feed-forward part looks at one token at a time, so both run it, and its gradient, `TOKENS` at a time (Kitaev et al.
2020, section 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lmforge.model.experts import Experts
from lmforge.model.feed_forward import FeedForward
from lmforge.model.hooks import weights_may_be_read

TOKENS = 2048  # of the feed-forward part at once: its hidden layer then stays near the processor
Gradients = dict[int, Tensor]  # gradients by parameter


def recomputed(x: Tensor, block: Any, forward_ctx: Any) -> Tensor:
    """`block(x, forward_ctx)`, keeping as little as said above: x (B,T,D) → (B,T,D)."""
    if not _may_be_cut(block):
        whole: Tensor = checkpoint(block, x, forward_ctx, use_reentrant=False, preserve_rng_state=False)
        return whole
    result: Tensor = _Recomputed.apply(x, block, forward_ctx, *_trained(block))  # type: ignore[no-untyped-call]
    return result


def reversible(x: Tensor, blocks: list[Any], forward_ctx: Any, begins: bool = True, ends: bool = True) -> Tensor:
    """Blocks over two streams: a ← a + Attention(b), b ← b + FF(a), from a = b = x to their mean (Gomez et al. 2017,
    eq. 6 and 7): x (B,T,D) → (B,T,D).

    Each step can be undone, so the backward pass makes the activations again from the last ones, and memory does not
    grow with depth. Where the blocks are a stage that does not begin, or end, the network, x, or the result, is both
    streams side by side (B,T,2D).
    """
    if not torch.is_grad_enabled() or forward_ctx.cache is not None:
        return _run(x, blocks, forward_ctx, begins, ends)
    if not all(map(_may_be_cut, blocks)):
        return _run(x, blocks, forward_ctx, begins, ends, again=True)
    result: Tensor = _Reversible.apply(x, blocks, forward_ctx, begins, ends, *_trained(*blocks))  # type: ignore[no-untyped-call]
    return result


def _may_be_cut(block: Any) -> bool:
    usual = block.attention_norm is not None and block.ff_norm is not None and not block.parallel
    return usual and block.attention_out_norm is None and block.ff_out_norm is None and weights_may_be_read(block)


def _run(x: Tensor, blocks: list[Any], forward_ctx: Any, begins: bool, ends: bool, again: bool = False) -> Tensor:
    """`reversible` as autograd does it; `again`: each block is run again in the backward pass."""
    a, b = (x, x) if begins else x.chunk(2, -1)
    for block in blocks:
        if again:
            a, b = checkpoint(block, a, forward_ctx, b, use_reentrant=False, preserve_rng_state=False)
        else:
            a, b = block(a, forward_ctx, b)
    return (a + b) / 2 if ends else torch.cat((a, b), -1)


class _Recomputed(torch.autograd.Function):
    """See `recomputed`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any, forward_ctx: Any, *parameters: Tensor) -> Tensor:
        x = x.detach().contiguous()
        mixed = block.attention.mixed(_projected(x, block), forward_ctx).contiguous()
        ctx.save_for_backward(x, mixed if block.attention.saves_attention else None)
        ctx.block, ctx.forward_ctx, ctx.parameters, ctx.cast = block, forward_ctx, parameters, _cast_of(x)
        y = torch.empty_like(x)
        for before, some, after in zip(*(_pieces(each, block) for each in (x, mixed, y)), strict=True):
            torch.add(before, block.attention.out(some), out=after)
            after += block.feed(after, forward_ctx)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mixed = ctx.saved_tensors
        block, gradients = ctx.block, Gradients()
        mixing = _Mixing(ctx, block, x, mixed)
        grad = torch.empty_like(x)
        for before, some, above, into in zip(
            *(_pieces(each, block) for each in (x, mixing.mixed, gradient.contiguous(), grad)), strict=True
        ):
            with _as_before(ctx), torch.no_grad():
                y = before + block.attention.out(some)
            torch.add(above, _fed(ctx, block, y, above, gradients), out=into)
        mixing.add_gradient(_before_out(ctx, block.attention.out, mixing.mixed, grad, gradients), grad, gradients)
        return grad, None, None, *(gradients.get(id(parameter)) for parameter in ctx.parameters)


class _Mixing:
    """A block's attention up to what its output matrix takes, run again on x; not yet, where `mixed`, that result, was
    kept."""

    def __init__(self, ctx: Any, block: Any, x: Tensor, mixed: Tensor | None) -> None:
        self.ctx, self.block, self.x = ctx, block, x
        self.again: Tensor | None = None
        self.arrived: list[Tensor] = []  # the gradient of queries, keys and values side by side
        self.anchor = torch.zeros((), requires_grad=True, device=x.device)
        self.mixed = self._mix(None).detach().contiguous() if mixed is None else mixed

    def _mix(self, known: Tensor | None) -> Tensor:
        with _as_before(self.ctx), torch.no_grad():
            qkv = _projected(self.x, self.block)
        with _as_before(self.ctx):
            begun: Any = _Begin.apply(self.anchor, qkv, self.arrived)  # type: ignore[no-untyped-call]
            del qkv
            again: Tensor = self.block.attention.mixed(begun, self.ctx.forward_ctx, known)
        self.again = again
        return again

    def add_gradient(self, down: Tensor, into: Tensor, gradients: Gradients) -> None:
        """From the gradient of `mixed`, that of x, added to `into`; once only."""
        attention = self.block.attention
        again = self._mix(self.mixed) if self.again is None else self.again
        self.again = None
        _gradients(
            again,
            self.anchor,
            tuple(part for name, part in attention.named_children() if name not in ("qkv", "out")),
            down,
            gradients,
        )
        del again
        for some, above, grad in zip(
            *(_pieces(each, self.block) for each in (self.x, self.arrived.pop().contiguous(), into)), strict=True
        ):
            with _as_before(self.ctx):
                leaf = some.detach().requires_grad_()
                normal = self.block.attention_norm(_beyond(leaf))
            grad += _before_last(self.ctx, attention.qkv, normal, leaf, (self.block.attention_norm,), above, gradients)


class _Begin(torch.autograd.Function):
    """x as where a graph begins that does not hold on to it: its gradient goes to a list."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, x: Tensor, arrived: list[Tensor]) -> Tensor:
        ctx.arrived = arrived
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.arrived.append(gradient)
        return None, None, None


def _projected(x: Tensor, block: Any) -> Tensor:
    """Queries, keys and values side by side: x (B,T,D) → (B,T,D+2K). Where no gradient is wanted, what the norm gave is
    not kept."""
    result: Tensor = block.attention.qkv(block.attention_norm(x))
    return result


def _before_out(ctx: Any, out: Any, mixed: Tensor, gradient: Tensor, gradients: Gradients) -> Tensor:
    """The gradient of what attention mixed (B,T,D), from that of what the output matrix made of it."""
    if type(out) is not nn.Linear:
        return _branch(ctx, lambda x, _: out(x), (out,), mixed, gradient, gradients)[1]
    return _weight_gradients(ctx, out, mixed, gradient, gradients).view_as(mixed)


class _Reversible(torch.autograd.Function):
    """See `reversible`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, blocks: list[Any], forward_ctx: Any, begins: bool, ends: bool, *parameters: Tensor
    ) -> Tensor:
        a, b = (each.clone(memory_format=torch.contiguous_format) for each in ((x, x) if begins else x.chunk(2, -1)))
        kept: list[Tensor | None] = []
        for block in blocks:
            mixed = block.attention.mixed(_projected(b, block), forward_ctx).contiguous()
            for some, other in zip(_pieces(mixed, block), _pieces(a, block), strict=True):
                other += block.attention.out(some)
            kept.append(mixed if block.attention.config.recompute and block.attention.saves_attention else None)
            del mixed
            for some, other in zip(_pieces(a, block), _pieces(b, block), strict=True):
                other += block.feed(some, forward_ctx)
        ctx.save_for_backward(a, b, *kept)
        ctx.blocks, ctx.forward_ctx, ctx.parameters, ctx.cast = blocks, forward_ctx, parameters, _cast_of(x)
        ctx.begins, ctx.ends = begins, ends
        return (a + b) / 2 if ends else torch.cat((a, b), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # a and b are written to: a second backward pass over the same graph is refused by autograd
        a, b, *kept = ctx.saved_tensors
        if ctx.ends:
            da, db = gradient / 2, gradient / 2
        else:
            da, db = (each.clone(memory_format=torch.contiguous_format) for each in gradient.chunk(2, -1))
        gradients = Gradients()
        for block in reversed(ctx.blocks):
            for some, other, grad, above in zip(*(_pieces(x, block) for x in (a, b, da, db)), strict=True):
                change, more = _branch(ctx, block.feed, (block.ff_norm, block.ff), some, above, gradients)
                other -= change
                grad += more
            mixing = _Mixing(ctx, block, b, kept.pop())
            for some, other in zip(_pieces(mixing.mixed, block), _pieces(a, block), strict=True):
                with _as_before(ctx), torch.no_grad():
                    other -= block.attention.out(some)
            mixing.add_gradient(_before_out(ctx, block.attention.out, mixing.mixed, da, gradients), db, gradients)
            del mixing
        dx = da + db if ctx.begins else torch.cat((da, db), -1)
        return dx, None, None, None, None, *(gradients.get(id(parameter)) for parameter in ctx.parameters)


def _pieces(x: Tensor, block: Any) -> Iterator[Tensor]:
    """x (B,T,D), contiguous, `TOKENS` tokens at a time, as views (1,t,D); whole where a token's part depends on the
    others (routers)."""
    flat = x.view(1, -1, x.shape[-1])
    yield from (x,) if isinstance(block.ff, Experts) else flat.split(TOKENS, 1)


def _branch(
    ctx: Any,
    branch: Callable[[Tensor, Any], Tensor],
    parts: tuple[nn.Module, ...],
    x: Tensor,
    gradient: Tensor,
    gradients: Gradients,
) -> tuple[Tensor, Tensor]:
    """Run a branch again on x: what it added, and the gradient of x; those of the parts' parameters are added to
    `gradients`."""
    with _as_before(ctx):
        x = x.detach().requires_grad_()
        change = branch(_beyond(x), ctx.forward_ctx)
    grad = _gradients(change, x, parts, gradient, gradients)
    return change.detach(), grad


def _fed(ctx: Any, block: Any, x: Tensor, gradient: Tensor, gradients: Gradients) -> Tensor:
    """The gradient of x from that of what the second branch made of it. That itself is not wanted, so its last product
    is left out."""
    ff = block.ff
    if not isinstance(ff, FeedForward):
        return _branch(ctx, block.feed, (block.ff_norm, ff), x, gradient, gradients)[1]
    with _as_before(ctx):
        leaf = x.detach().requires_grad_()
        hidden = ff.activated(ff.up(block.ff_norm(_beyond(leaf))))
    return _before_last(ctx, ff.down, hidden, leaf, (block.ff_norm, ff.up), gradient, gradients)


def _before_last(
    ctx: Any,
    last: Any,
    below: Tensor,
    leaf: Tensor,
    parts: tuple[nn.Module, ...],
    gradient: Tensor,
    gradients: Gradients,
) -> Tensor:
    """The gradient of `leaf`, of which `parts` made `below`, from that of last(below), which is not made where `last`
    is a plain matrix."""
    if type(last) is not nn.Linear:
        with _as_before(ctx):
            result = last(below)
        return _gradients(result, leaf, (*parts, last), gradient, gradients)
    grad = _weight_gradients(ctx, last, below.detach(), gradient, gradients).view_as(below)
    return _gradients(below, leaf, parts, grad, gradients)


def _weight_gradients(ctx: Any, layer: nn.Linear, given: Tensor, gradient: Tensor, gradients: Gradients) -> Tensor:
    """Those of a matrix and its bias, from what it was given (…,I) and the gradient of what it made (…,O); the gradient
    of the former (N,I)."""
    # as the product itself was made in
    dtype = torch.get_autocast_dtype(given.device.type) if ctx.cast[2] else given.dtype
    above, below = gradient.to(dtype).flatten(0, -2), given.to(dtype).flatten(0, -2)
    if layer.weight.requires_grad:
        _add(gradients, layer.weight, (above.t() @ below).to(layer.weight.dtype))
    if layer.bias is not None and layer.bias.requires_grad:
        _add(gradients, layer.bias, above.sum(0).to(layer.bias.dtype))
    return above @ layer.weight.to(dtype)


def _gradients(y: Tensor, x: Tensor, parts: tuple[nn.Module, ...], gradient: Tensor, gradients: Gradients) -> Tensor:
    """The gradient of x; those of the parts' parameters are added to `gradients`."""
    wanted = _trained(*parts)
    grad, *rest = torch.autograd.grad(y, [x, *wanted], gradient.to(y.dtype), allow_unused=True)
    for parameter, new in zip(wanted, rest, strict=True):
        if new is not None:
            _add(gradients, parameter, new)
    return grad


def _add(gradients: Gradients, parameter: Tensor, new: Tensor) -> None:
    if id(parameter) in gradients:
        gradients[id(parameter)] += new
    else:
        gradients[id(parameter)] = new


def _beyond(leaf: Tensor) -> Tensor:
    """The same, one node of the graph further: hooks that follow modules cannot be put on leaves inside a backward
    pass."""
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
