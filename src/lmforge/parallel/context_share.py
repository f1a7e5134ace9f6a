"""Which tokens of a row each process has, and what processes exchange about them.

    row of T tokens in 2·3 pieces: 0 1 2 3 4 5 ─▶ process 0: 0 and 5; process 1: 1 and 4; process 2: 2 and 3

Early tokens see few others and late ones many, so each process takes an early and a late piece: with causal attention
all have the same work (Dubey et al. 2024, "The Llama 3 herd of models", section 3.3.2). Tokens and documents of whole
rows are known everywhere; hidden states are where their tokens are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmforge.parallel.mesh import Mesh


class Rows:
    """The rows of one pass: where this process's tokens stand, and where their documents begin."""

    def __init__(self, share: Share, tokens: Tensor, documents: Tensor | None) -> None:
        """tokens (B,T), or hidden states of them; documents (B,T) or None, as in `GPT.hidden`."""
        self.rows, self.length = rows, length = tokens.shape[:2]
        self.tokens = tokens if tokens.ndim == 2 else None
        device = tokens.device
        count = 2 * share.size
        self.pieces = [range(length * i // count, length * (i + 1) // count) for i in range(count)]
        self.own = self.pieces_of(share.index)
        at = torch.arange(length, device=device)
        if documents is None:
            self.starts = at.new_zeros(rows, length)
        else:
            begins = torch.ones_like(documents, dtype=torch.bool)
            begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
            self.starts = torch.where(begins, at, 0).cummax(1).values  # of each token's document
        self.packed = documents is not None
        self.index = torch.cat([at[piece.start : piece.stop] for piece in self.own])  # of this process's tokens (t,)
        self.positions = self.index - self.starts[:, self.index]  # in their documents (B,t)
        self.reaches: dict[int | None, tuple[Tensor, list[int], list[int]]] = {}

    def pieces_of(self, process: int) -> list[range]:
        """The two pieces of a process."""
        return [self.pieces[process], self.pieces[len(self.pieces) - 1 - process]]

    def cut(self, x: Tensor) -> Tensor:
        """(B,T,…) → what of it is this process's (B,t,…)."""
        return x.index_select(1, self.index)

    def reach(self, window: int | None) -> tuple[Tensor, list[int], list[int]]:
        """The first key that each token sees (B,T), and over all rows the earliest and the latest of these (T,): what
        token t sees ends with itself."""
        if window not in self.reaches:
            low = self.starts
            if window is not None:
                at = torch.arange(self.length, device=low.device)
                low = torch.maximum(low, at - (window - 1))
            none = low.new_zeros(0).tolist()
            self.reaches[window] = (low, low.amin(0).tolist(), low.amax(0).tolist()) if self.rows else (low, none, none)
        return self.reaches[window]


class Share:
    """This process among those that share rows."""

    def __init__(self, mesh: Mesh) -> None:
        self.group: Any = mesh.group("context")
        self.ranks, self.index, self.size = mesh.ranks("context"), mesh.places["context"], mesh.sizes["context"]
        self.now: Rows | None = None  # the rows of the pass that runs, or ran last

    @property
    def current(self) -> Rows:
        """The rows of the pass that runs; in its backward pass too."""
        assert self.now is not None
        return self.now

    def begin(self, tokens: Tensor, documents: Tensor | None) -> Rows:
        """The rows of a pass that begins now."""
        self.now = Rows(self, tokens, documents)
        return self.now

    def known_again(self, x: Tensor) -> Tensor:
        """x, what a pass gives; when its backward pass begins, the rows that run are those of now. Other passes may
        come between (of a pipeline), and blocks that are run again ask for them."""
        if not torch.is_grad_enabled():
            return x
        result: Tensor = _KnownAgain.apply(x, self, self.current)  # type: ignore[no-untyped-call]
        return result

    def own_length(self, length: int) -> int:
        """How many tokens of a row of `length` are this process's."""
        count = 2 * self.size
        return sum(length * (i + 1) // count - length * i // count for i in (self.index, count - 1 - self.index))

    def exchange(self, sends: list[tuple[int, Tensor]], receives: list[tuple[int, Tensor]]) -> list[Any]:
        """Begin to send to processes and to receive from them; what to wait for."""
        operations = [dist.P2POp(dist.isend, x.contiguous(), self.ranks[to], self.group) for to, x in sends]
        operations += [dist.P2POp(dist.irecv, room, self.ranks[of], self.group) for of, room in receives]
        return dist.batch_isend_irecv(operations) if operations else []

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, with its gradient."""
        result: Tensor = _Sum.apply(x, self.group)  # type: ignore[no-untyped-call]
        return result

    def in_order(self, x: Tensor) -> Tensor:
        """What all processes have of rows (B,t,…) → whole rows (B,T,…). No gradient goes through."""
        rows = self.current
        whole = x.new_empty(x.shape[0], rows.length, *x.shape[2:])
        for process, rank in enumerate(self.ranks):
            pieces = rows.pieces_of(process)
            part = (
                x.contiguous()
                if process == self.index
                else x.new_empty(x.shape[0], sum(map(len, pieces)), *x.shape[2:])
            )
            dist.broadcast(part, rank, group=self.group)
            for piece, own in zip(pieces, part.split([len(piece) for piece in pieces], 1), strict=True):
                whole[:, piece.start : piece.stop] = own
        return whole


class _KnownAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Share, rows: Rows) -> Tensor:
        ctx.share, ctx.rows = share, rows
        return x.view_as(x) if x.ndim else x.clone()  # what shards a network does not like to get a view

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.share.now = ctx.rows
        return gradient, None, None


class _Sum(torch.autograd.Function):
    """Every process uses the sum, so the gradient of a summand is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
