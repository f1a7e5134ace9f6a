"""Token sequences that begin alike, each token that they share computed once.

    "The cat" + " sat"          The ─ cat ┬─ sat
    "The cat" + " ran off"                └─ ran ─ off          a tree: its tokens in one row, side by side with others

Norms, matrices and feed-forwards act on each token of the row by itself; attention lets a token see itself and what
stands before it on its own branch. What a tree gives depends on no other tree in the row: attention runs on each by
itself, in shapes that its own size decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lmforge.model.packing import Packing
from lmforge.model.rope import rotate
from lmforge.model.softmax_attention import Softmax

if TYPE_CHECKING:
    from lmforge.model.attention import Attention
    from lmforge.model.cache import ForwardContext

LayerKeys = dict[int, tuple[Tensor, Tensor]]  # by layer: keys (rotated) and values (1,S,kv_heads,E)


class Tree:
    """Sequences by their tokens: `tokens` (n), each after its parent; `parents`, −1 for a first one; `ends`, the node
    each sequence ends in; `depths`, how many tokens stand before each node on its branch."""

    def __init__(self, sequences: Sequence[Sequence[int]], shared: bool = True) -> None:
        """`shared` False: no sequence shares a node with another."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.paths: list[list[int]] = []  # the nodes of each sequence
        children: dict[tuple[object, int], int] = {}
        for number, sequence in enumerate(sequences):
            at, path = -1, []
            for depth, token in enumerate(sequence):
                key = (at if shared else (number, depth), token)
                node = children.get(key)
                if node is None:
                    node = children[key] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(at)
                    self.depths.append(depth)
                at = node
                path.append(node)
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self.tokens)

    def mask(self, before: int) -> Tensor:
        """(n, before + n): 0 where a node sees a token of the stem or of its own branch, −∞ elsewhere."""
        size = len(self)
        seen = torch.eye(size, dtype=torch.bool).numpy()
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        result = torch.zeros(size, before + size)
        result[:, before:].masked_fill_(~torch.from_numpy(seen), -torch.inf)
        return result


class Branches(Packing):
    """Trees side by side in one row, perhaps all after one `stem`: keys and values of what stands before every tree
    (`stem_of`), for layers of full attention."""

    def __init__(
        self,
        trees: Sequence[Tree],
        length: int,
        device: torch.device,
        stem: LayerKeys | None = None,
        keep: bool = False,
    ) -> None:
        """`length`: of the row, at least that of all trees; the rest of it is padding. `keep`: note the keys and values
        of the only tree, to be a stem."""
        self.trees, self.length, self.stem, self.keep = trees, length, stem or {}, keep
        before = next(iter(self.stem.values()))[0].shape[1] if stem else 0
        depths = [before + depth for tree in trees for depth in tree.depths]
        self.positions = torch.tensor([depths + [0] * (length - len(depths))], device=device)
        self.reach = max(depths, default=0) + 1
        self.masks = [tree.mask(before).to(device)[None, None] for tree in trees]
        self.kept: LayerKeys = {}

    def mixed(self, attention: Attention, qkv: Tensor, forward_ctx: ForwardContext) -> Tensor:
        """What `attention` makes of queries, keys and values (1,N,W+2K) → (1,N,W); 0 for padding."""
        full = isinstance(attention.mixer, Softmax) and attention.mixer.window is None
        parts = self._full(attention, qkv, forward_ctx) if full else self._alone(attention, qkv, forward_ctx)
        joined = torch.cat(parts, 1)
        return F.pad(joined, (0, 0, 0, self.length - joined.shape[1]))

    def _full(self, attention: Attention, qkv: Tensor, forward_ctx: ForwardContext) -> list[Tensor]:
        q, k, v = attention.projected(qkv)
        if forward_ctx.table is not None:
            turns = forward_ctx.table[self.positions[0]]
            q, k = rotate(q, turns), rotate(k, turns)
        if self.keep:
            size = len(self.trees[0])
            self.kept[attention.layer] = (k[:, :size].clone(), v[:, :size].clone())
        stem = self.stem.get(attention.layer)
        results, start = [], 0
        for tree, mask in zip(self.trees, self.masks, strict=True):
            place = slice(start, start + len(tree))
            start = place.stop
            keys, values = k[:, place], v[:, place]
            if stem is not None:
                keys, values = torch.cat((stem[0], keys), 1), torch.cat((stem[1], values), 1)
            own, keys, values = (each.transpose(1, 2) for each in (q[:, place], keys, values))
            y = F.scaled_dot_product_attention(
                own, keys, values, attn_mask=mask.to(own.dtype), enable_gqa=own.shape[1] > keys.shape[1]
            )
            results.append(y.transpose(1, 2).flatten(2))
        return results

    def _alone(self, attention: Attention, qkv: Tensor, forward_ctx: ForwardContext) -> list[Tensor]:
        """Layers of other kinds, which have no mask for a tree: every branch is a row, with what it shares repeated."""
        assert not self.stem, "a stem needs full attention in every layer"
        results, start = [], 0
        for tree in self.trees:
            own = qkv[0, start : start + len(tree)]
            start += len(tree)
            longest = max(map(len, tree.paths))
            index = torch.tensor([path + [0] * (longest - len(path)) for path in tree.paths], device=qkv.device)
            turns = None if forward_ctx.table is None else forward_ctx.table[:longest]
            mixed = attention.whole_rows(own[index], turns, forward_ctx)
            y = mixed.new_zeros(len(tree), mixed.shape[-1])
            for row, path in enumerate(tree.paths):
                y[path] = mixed[row, : len(path)]
            results.append(y[None])
        return results
