"""Documents packed in rows, moved to rows of their own and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Rearrange(torch.autograd.Function):
    """x[index], with a gradient that gathers too: `back` says where each entry of x went. Entries that `empty` marks
    take nothing back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, empty: Tensor | None) -> Tensor:
        ctx.save_for_backward(back, empty)
        return x[index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back, empty = ctx.saved_tensors
        result = gradient[back]
        return (result if empty is None else result.masked_fill_(empty[:, None], 0)), None, None, None


def rearrange(x: Tensor, index: Tensor, back: Tensor, empty: Tensor | None = None) -> Tensor:
    """x[index] over the first dimension of x (N,W); `back` says where each entry of x went, `empty` which entries went
    nowhere."""
    result: Tensor = _Rearrange.apply(x, index, back, empty)  # type: ignore[no-untyped-call]
    return result


class Packing:
    """The documents of packed rows, each moved to a row of its own, so that no attention of any kind can cross from one
    to another.

    Documents of like length stand together in one batch, the shorter ones padded on the right, where causal attention
    never looks: at most twice the tokens. What a document gives depends on no other document's tokens, to the last bit.
    """

    def __init__(self, documents: Tensor) -> None:
        """documents (B,T): a run of equal numbers within a row is a document."""
        rows, length = documents.shape
        self.reach = length  # the most tokens of a text, as far as is known
        device = documents.device
        begins = torch.ones(rows, length, dtype=torch.bool, device=device)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = begins.flatten().nonzero()[:, 0]
        lengths = torch.diff(starts, append=starts.new_tensor([rows * length]))
        number = begins.flatten().cumsum(0) - 1
        self.positions = (torch.arange(rows * length, device=device) - starts[number]).view(rows, length)
        sizes = (lengths - 1).clamp(min=15).log2().floor()  # documents of up to 16, 32, 64, … tokens
        self.shapes: list[tuple[int, int]] = []
        indices, paddings = [], []
        for size in sizes.unique().tolist():
            chosen = (sizes == size).nonzero()[:, 0]
            offsets = torch.arange(int(lengths[chosen].max()), device=device)
            padding = offsets >= lengths[chosen, None]
            indices.append((starts[chosen, None] + offsets).masked_fill(padding, 0).flatten())
            paddings.append(padding.flatten())
            self.shapes.append((len(chosen), len(offsets)))
        self.slots, self.padding = torch.cat(indices), torch.cat(paddings)  # slot → its token; which slots are padding
        self.tokens = torch.empty(rows * length, dtype=torch.long, device=device)  # token → its slot
        self.tokens[self.slots[~self.padding]] = (~self.padding).nonzero()[:, 0]
        self.rows = rows

    def apart(self, x: Tensor) -> list[Tensor]:
        """(B,T,W) → (documents, their length, W), one for each group of like length."""
        flat = rearrange(x.flatten(0, 1), self.slots, self.tokens)
        parts = flat.split([count * length for count, length in self.shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def together(self, parts: list[Tensor]) -> Tensor:
        """What `apart` gave → (B,T,W)."""
        flat = torch.cat([part.flatten(0, 1) for part in parts])
        joined = rearrange(flat, self.tokens, self.slots, self.padding)
        return joined.view(self.rows, -1, flat.shape[-1])
