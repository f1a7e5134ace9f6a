"""The tokens of a row over processes: context parallelism, for rows too long for one device.

    rows ─cut─▶ two pieces of each ─embedding, blocks, loss of these tokens─▶ sums over processes
                                       └ attention exchanges what it needs, each kind in its own way

    full, window, strided, pooled, sparse   keys and values go round      `context_ring`
    linear                                  sums are passed on            `context_linear`
    lsh                                     each process takes some heads `context_heads`

Everything else in the network looks at one token at a time, and needs to know only where it stands.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lmforge.model.cache import KVCache
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.model.linear_attention import Linear
from lmforge.model.lsh import LSH
from lmforge.model.softmax_attention import Softmax
from lmforge.parallel.context_heads import HeadsLSH
from lmforge.parallel.context_linear import SharedLinear
from lmforge.parallel.context_share import Rows, Share
from lmforge.parallel.context_softmax import RingSoftmax
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.spread import Spread

SHARED: dict[type[nn.Module], Any] = {Softmax: RingSoftmax, Linear: SharedLinear, LSH: HeadsLSH}


def context_problems(config: GPTConfig, size: int, tensor: int = 1) -> list[str]:
    """Why rows of a network cannot be shared by `size` processes; empty where they can."""
    heads = {config.shape_of(n).heads for n in range(config.layers) if config.kind_of(n) == "lsh"}
    uneven = sorted(each for each in heads if each % (size * tensor))
    checks = [
        (
            bool(uneven),
            f"lsh gives each process some of a layer's heads, and {uneven} do not divide; take a number of heads that "
            f"{size * tensor} divides, or another kind of attention",
        ),
        (
            config.ahead > 0,
            "model.ahead reads the next tokens' embeddings, which other processes have; set model.ahead = 0",
        ),
        (bool(config.image_size), "patches of images are placed in whole rows; use it for text"),
    ]
    return [reason for wrong, reason in checks if wrong]


def apply_context(model: GPT, mesh: Mesh, _spread: Spread | None = None) -> None:
    """Let a pass work on this process's tokens of each row alone. Losses that it gives are summed over the axis by the
    layout (`MeshLayout.forward_backward`), and so are gradients, as those of other rows are."""
    share = Share(mesh)
    for block in model.blocks:
        if block.attention is not None:
            mixer: Any = block.attention.mixer
            mixer.__class__ = SHARED[type(mixer)]
            mixer.share, mixer.table = share, partial(_table, model, share, block.attention.local)
    if model.learned_positions is not None:
        model.learned_positions.register_forward_pre_hook(partial(_positions, share))
    if model.ngrams is not None:
        model.ngrams.register_forward_pre_hook(partial(_whole_rows, share))
        model.ngrams.register_forward_hook(partial(_own_part, share))
    network: Any = model
    network.__class__, network.share = SharedRows, share


class SharedRows(GPT):
    """A network whose passes work on this process's tokens of each row; takes the place of `GPT`. Between stages of a
    pipeline go the hidden states of these tokens: what enters a later stage belongs to `share.now`."""

    share: Share

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        chunk: int | None = None,
        *,
        images: Tensor | None = None,
    ) -> Tensor:
        """As `GPT.loss`, of this process's tokens of the rows."""
        own, rows = self._entering(tokens, documents)
        nats = super().loss(own, rows.cut(targets), None, chunk, images=images)
        return self.share.known_again(nats)

    def hidden(  # type: ignore[override]
        self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None, **more: Any
    ) -> Tensor:
        """As `GPT.hidden`: of the last layer whole rows, on all processes, without a gradient; of an earlier stage this
        process's tokens. What decodes with a cache, each process does alike."""
        if cache is not None:
            self.share.now = None
            return super().hidden(tokens, cache, documents, **more)
        own, _ = self._entering(tokens, documents)
        result = super().hidden(own, None, None, **more)
        return self.share.known_again(result) if self.norm is None else self.share.in_order(result)

    def _entering(self, tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Rows]:
        """This process's part of what enters, and the rows that it is of."""
        if tokens.ndim > 2:  # from an earlier stage
            return tokens, self.share.current
        rows = self.share.begin(tokens, documents)
        return rows.cut(tokens), rows


def _table(model: GPT, share: Share, local: bool) -> Tensor:
    """The rotation of each position of whole rows, as a layer takes it."""
    model._reach_to(share.current.length)
    return model.local_rotations if local and model.local_rotations is not None else model.rotations


def _positions(share: Share, _module: nn.Module, given: tuple[Any, ...]) -> Any:
    """Learned positions are those in the documents of whole rows."""
    return given if share.now is None else (share.now.positions,)


def _whole_rows(share: Share, _module: nn.Module, given: tuple[Any, ...]) -> Any:
    """n-grams reach over the ends of pieces: they are looked up for whole rows, whose tokens are known."""
    rows = share.now
    if rows is None or rows.tokens is None:
        return given
    at = torch.arange(rows.length, device=rows.starts.device)
    return rows.tokens, rows.tokens.new_zeros(rows.rows, 2), at - rows.starts if rows.packed else None


def _own_part(share: Share, _module: nn.Module, _given: Any, result: Tensor) -> Tensor:
    """Of what was looked up, this process's tokens."""
    return result if share.now is None or share.now.tokens is None else share.now.cut(result)
