"""Linear attention over rows whose tokens are spread over processes: the sums that pieces begin with are exchanged.

    each piece: Σ φ(k) [v, 1]ᵀ over its last document's tokens ─all processes─▶ what each piece begins with: the sums of
    the pieces before it, back to where its first token's document begins ─▶ its own tokens, chunk by chunk

One exchange of sums (H,F,E+1) a piece, whatever the length of the rows (Sun et al. 2025, "LASP-2"); its gradient goes
the same way back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.model.linear_attention import Linear, linear_attention
from lmforge.model.packing import Packing
from lmforge.model.rope import rotate
from lmforge.parallel.context_share import Rows, Share


class SharedLinear(Linear):
    """Linear attention over a share of a row; takes the place of `Linear` in a network."""

    share: Share
    table: Any  # the rotations of all positions, asked for in each pass

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rotations: Tensor | None, known: Tensor | None = None) -> Tensor:
        """See `attention.Mixer`: q (B,t,H,E), k and v (B,t,kv_heads,E) of this process's tokens → (B,H,t,E)."""
        rows = self.share.current
        if rotations is not None:
            turns = self.table()[rows.positions]
            q, k = rotate(q, turns), rotate(k, turns)
        q, k = self._features(q, self.q_features), self._features(k, self.k_features)
        v = v.transpose(1, 2)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        sizes = [len(piece) for piece in rows.own]
        split = zip(rows.own, q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), strict=True)
        parts = [part for part in split if len(part[0])]
        begins = self._begins(rows, [(piece, keys, values) for piece, _, keys, values in parts])
        return torch.cat([_piece(rows, piece, a, b, c, begins) for piece, a, b, c in parts], 2)

    def _begins(self, rows: Rows, parts: list[tuple[range, Tensor, Tensor]]) -> Tensor:
        """What each piece of the row begins with (pieces,B,H,F,E+1), from keys and values of this process's."""
        pieces, starts = rows.pieces, rows.starts
        sums: dict[int, Tensor] = {}
        for piece, k, v in parts:
            own = starts[:, piece.start : piece.stop] == starts[:, piece.stop - 1 : piece.stop]
            exact = torch.promote_types(k.dtype, torch.float32)
            with torch.autocast(k.device.type, enabled=False):
                keys = (k * own[:, None, :, None]).to(exact)
                sums[pieces.index(piece)] = keys.mT @ F.pad(v.to(exact), (0, 1), value=1.0)
        like = next(iter(sums.values()))
        whole = self.share.sum(torch.stack([sums.get(i, torch.zeros_like(like)) for i in range(len(pieces))]))
        firsts = torch.tensor([min(piece.start, rows.length - 1) for piece in pieces], device=starts.device)
        lasts = torch.tensor([max(piece.stop - 1, 0) for piece in pieces], device=starts.device)
        same = starts[:, firsts, None] == starts[:, None, lasts]  # (B, piece, piece before it): one document's
        order = torch.arange(len(pieces), device=starts.device)
        filled = torch.tensor([len(piece) > 0 for piece in pieces], device=starts.device)
        before = (same & (order[None, :] < order[:, None]) & filled).to(whole.dtype)
        return torch.einsum("bij,jbhfe->ibhfe", before, whole)


def _piece(rows: Rows, piece: range, q: Tensor, k: Tensor, v: Tensor, begins: Tensor) -> Tensor:
    """The tokens of one piece, q, k (B,H,t,F), v (B,H,t,E), each document of it by itself → (B,H,t,E)."""
    state = begins[rows.pieces.index(piece)]
    if not rows.packed:
        return linear_attention(q, k, v, state)[0]
    packing = Packing(rows.starts[:, piece.start : piece.stop])
    widths = [x.shape[1] * x.shape[3] for x in (q, k, v)]
    apart = packing.apart(torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1))
    results, slot = [], 0
    for part in apart:
        tokens = packing.slots[slot : slot + part.shape[0] * part.shape[1]].view(part.shape[:2])
        slot += tokens.numel()
        begin = tokens[:, 0]  # a document's first token here; it goes on from earlier pieces if it is the piece's first
        goes_on = (begin % len(piece) == 0).to(state.dtype)
        carried = state[begin // len(piece)] * goes_on[:, None, None, None]
        queries, keys, values = (x.unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for x in part.split(widths, -1))
        results.append(linear_attention(queries, keys, values, carried)[0].transpose(1, 2).flatten(2))
    y: Tensor = packing.together(results).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)
    return y
