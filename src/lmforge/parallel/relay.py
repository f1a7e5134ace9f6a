"""A pipeline's stages as one network, for scoring and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lmforge.model.cache import KVCache
from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.parallel.shard import inside
from lmforge.parallel.stages import Stages


class Relay:
    """A network over all stages, for what needs no gradients: every process of the pipeline calls it alike, and gets
    what the last stage made. A cache holds the layers of its process."""

    def __init__(self, model: GPT, parts: Mapping[int, GPT], stages: Stages, mesh: Mesh) -> None:
        """`parts`: the stages of this process, by number; `model`: all that it has of the network."""
        self.model, self.parts, self.stages, self.mesh, self.config = model, parts, stages, mesh, model.config
        self.group, self.ranks = mesh.group("pipeline"), mesh.ranks("pipeline")

    @torch.no_grad()
    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None, **more: Any
    ) -> Tensor:
        """As `GPT.hidden`."""
        before = None if cache is None else (cache.extent, cache.lengths)
        x: Tensor = tokens
        if cache is None and (share := getattr(self.model, "share", None)) is not None:
            share.begin(tokens, documents)
        for stage in range(self.stages.count):
            if stage in self.parts:
                if cache is not None and before is not None:  # it grows once, whatever the number of stages here
                    cache.extent, cache.lengths = before
                x = inside(self.model, partial(self.parts[stage].hidden, **more), x, cache, documents)
            x = self._passed(x, stage)
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """hidden (…,D) → logits (…,V), which the last stage makes."""
        last = self.stages.count - 1
        head = self.parts[last].head if last in self.parts else None
        with torch.no_grad():
            return self._passed(hidden if head is None else inside(self.model, head, hidden), last)

    def forward(self, tokens: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """As `GPT.forward`: logits (B,T,V)."""
        return self.head(self.hidden(tokens, cache, documents))

    __call__ = forward

    def _passed(self, x: Tensor, stage: int) -> Tensor:
        """What the process of a stage has, on all processes."""
        origin, group = self.ranks[self.stages.process_of(stage)], self.group
        what = [(x.shape, x.dtype)]
        dist.broadcast_object_list(what, origin, group=group)
        if self.mesh.rank != origin:
            x = torch.empty(what[0][0], dtype=what[0][1], device=self.mesh.device)
        x = x.contiguous()
        dist.broadcast(x, origin, group=group)
        return x
