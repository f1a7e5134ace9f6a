"""What the tests of shared rows have in common: one layer's attention on whole rows, and over processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from bench.quality.layouts import join_for
from torch import Tensor

from lmforge.model.attention import Attention
from lmforge.model.cache import ForwardContext
from lmforge.model.config import GPTConfig
from lmforge.model.gpt import GPT
from lmforge.model.packing import Packing
from lmforge.parallel import agree, context_ring
from lmforge.parallel.context import apply_context
from lmforge.parallel.context_share import Rows, Share

Setting = tuple[dict[str, Any], int, bool]  # of the network, tokens of a row, packed
ROWS = 3


def documents_of(rows: int, length: int, share: float = 0.15) -> Tensor:
    """(rows,length): short and long ones, their ends anywhere; the last row is one document."""
    begins = torch.rand(rows, length, generator=torch.Generator().manual_seed(length)) < share
    begins[-1] = False
    return begins.long().cumsum(1)


def share_of(size: int, index: int) -> Any:
    """A share that exchanges nothing."""
    return SimpleNamespace(size=size, index=index, pieces_of=None)


def one_layer(setting: Setting) -> GPT:
    """A network of one layer."""
    small = {"vocab_size": 30, "layers": 1, "d_model": 16, "heads": 4, "kv_heads": 4, "d_ff": 8}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(small | {"context": setting[1]} | setting[0])))
    for name, parameter in model.named_parameters():
        if "mixer" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def mixed_alone(attention: Attention, qkv: Tensor, documents: Tensor | None, table: Tensor) -> Tensor:
    """What a layer mixes of whole rows (B,T,W)."""
    packing = None if documents is None else Packing(documents)
    turns = table[: qkv.shape[1]] if table.numel() else None
    return attention.mixed(qkv, ForwardContext(table, turns, packing))


def largest_differences(settings: list[Setting], tile: int) -> list[float]:
    """On a process of a context axis: for each setting, how far what it mixes, and all gradients, are from those of
    whole rows, relative to the largest."""
    import torch.distributed as dist

    context_ring.TILE = tile
    results = []
    mesh = join_for({"context": agree.world()})
    for setting in settings:
        whole, shared = one_layer(setting), one_layer(setting)
        apply_context(shared, mesh)
        attention, other = whole.blocks[0].attention, shared.blocks[0].attention
        assert attention is not None
        assert other is not None
        documents = documents_of(ROWS, setting[1]) if setting[2] else None
        width = attention.qkv.out_features
        qkv = torch.randn(ROWS, setting[1], width, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = mixed_alone(attention, qkv, documents, whole.rotations)
        above = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        y.backward(above)
        share: Share = other.mixer.share  # type: ignore[assignment, union-attr]
        share.now = rows = Rows(share, torch.zeros(ROWS, setting[1], dtype=torch.long), documents)
        own = rows.cut(qkv.detach()).requires_grad_()
        turns = shared.rotations[: len(rows.index)] if shared.rotations.numel() else None
        part = other.mixed(own, ForwardContext(shared.rotations, turns))
        part.backward(rows.cut(above))
        pairs = [(part, rows.cut(y)), (own.grad, rows.cut(qkv.grad))]  # type: ignore[arg-type]
        for mine, expected in zip(other.mixer.parameters(), attention.mixer.parameters(), strict=True):
            assert mine.grad is not None
            dist.all_reduce(mine.grad)
            pairs.append((mine.grad, expected.grad))
        results.append(max(_difference(a.detach(), b.detach()) for a, b in pairs))  # type: ignore[union-attr]
    return results


def _difference(mine: Tensor, expected: Tensor) -> float:
    """Relative to the largest; a process may have no token of a row that has fewer than there are pieces."""
    assert mine.shape == expected.shape
    return float((mine - expected).abs().max() / expected.abs().max()) if mine.numel() else 0.0
