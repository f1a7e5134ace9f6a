"""What four processes of one group find out together, once for all tests of this folder (`conftest.four`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from bench.quality import layouts
from torch import Tensor, nn

from lmforge.model.loss import linear_cross_entropy
from lmforge.parallel import exchange
from lmforge.parallel.data import OverlappedSum
from lmforge.parallel.mesh import Mesh, sum_together
from lmforge.parallel.spread import Cut, Spread, even_parts
from lmforge.parallel.vocabulary import PartEmbedding, vocabulary_cross_entropy, whole_logits
from lmforge.parallel.whole import gather_whole, part_of

CASES = [
    layouts.Case("FSDP × TP", layouts.FSDP_TP, "grouped", "muon"),
    layouts.Case("HSDP", layouts.HSDP, "experts"),
    layouts.Case("FSDP × PP", {"shard": 2, "pipeline": 2}, "biases", "adamw", {"pipeline_schedule": "zbv"}),
    layouts.Case("CP × PP", {"context": 2, "pipeline": 2}, "biased experts"),
]


def everything(folder: str) -> dict[str, Any]:
    """All findings, by test."""
    mesh = layouts.join_for({"tensor": 4})
    return {
        "rank": mesh.rank,
        "mesh": meshes(),
        "exchange": exchanges(mesh),
        "vocabulary": vocabulary(mesh),
        "data": overlapped(layouts.join_for({"data": 4})),
        "whole": wholes(),
        "equal": [(case.row, figures) for case, figures in layouts.compare_all(CASES, "float32", False)],
        "changes": layouts.change_all([CASES[0], layouts.Case("DP", layouts.DP, "grouped", "muon")], folder),
        "refused": refused(),
    }


def meshes() -> dict[str, Any]:
    mesh = layouts.join_for({"shard": 2, "tensor": 2})
    ones = torch.ones(1) * 10**mesh.rank
    sums = {}
    for axes in (("tensor",), ("shard",), ("shard", "tensor"), ("data",)):
        if (group := mesh.group(*axes)) is not None:
            both = ones.clone()
            sum_together([both], group)
            sums[axes] = float(both), mesh.ranks(*axes)
        else:
            sums[axes] = float(ones), mesh.ranks(*axes)
    return {
        "sums": sums,
        "data": (mesh.data_rank, mesh.data_size),
        "total": mesh.total(10.0**mesh.rank),
        "anyone": (mesh.anyone(mesh.rank == 3), mesh.anyone(False)),
    }


def exchanges(mesh: Mesh) -> dict[str, float]:
    """How far values and gradients are from those of the whole, computed here too."""
    group, rank, errors = mesh.group("tensor"), mesh.rank, {}
    parts = [torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    whole = torch.cat(parts, -2)
    weights = [torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(9 + i)) for i in range(4)]
    mine = slice(3 * rank, 3 * rank + 3)

    def note(name: str, value: Tensor, right: Tensor, x: Tensor, gradient: Tensor) -> None:
        errors[name] = max(float((value - right).abs().max()), float((x.grad - gradient).abs().max()))

    x = parts[rank].clone().requires_grad_()
    y = exchange.all_tokens(x, group)
    (y * weights[rank]).sum().backward()
    note("all_tokens", y, whole, x, sum(weights)[:, mine])
    x = weights[rank].clone().requires_grad_()
    y = exchange.own_tokens(x, group)
    (y * parts[rank]).sum().backward()
    note("own_tokens", y, sum(weights)[:, mine], x, whole)
    x = whole.clone().requires_grad_()
    (exchange.alike(x, group) * weights[rank]).sum().backward()
    note("alike", x, whole, x, sum(weights))
    x = weights[rank].clone().requires_grad_()
    y = exchange.summed(x, group)
    (y * whole).sum().backward()
    note("summed", y, sum(weights), x, whole)
    x = parts[rank].clone().requires_grad_()
    y = exchange.spread_out(x, group)
    (y * weights[0]).sum().backward()
    note("spread_out", y, whole, x, weights[0][:, mine])
    x = whole.clone().requires_grad_()
    y = exchange.taken(x, group)
    (y * weights[0][:, mine]).sum().backward()
    note("taken", y, whole[:, mine], x, weights[0])
    return errors


def vocabulary(mesh: Mesh) -> dict[str, float]:
    """Of a vocabulary of 203 over four processes: how far loss, gradients, embedding and logits are from the whole."""
    group, generator = mesh.group("tensor"), torch.Generator().manual_seed(0)
    parts = even_parts(203, 4)
    mine = parts[mesh.rank]
    hidden, weight = torch.randn(50, 16, generator=generator), torch.randn(203, 16, generator=generator)
    targets = torch.randint(-1, 203, (50,), generator=generator)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    right = linear_cross_entropy(h, w, targets, 16, 0.01)
    right.backward()
    part_h = hidden.clone().requires_grad_()
    part_w = weight[mine.start : mine.stop].clone().requires_grad_()
    loss = vocabulary_cross_entropy(mine.start, group)(part_h, part_w, targets, 16, 0.01)
    loss.backward()
    d_hidden = exchange.total(part_h.grad, group)
    embedding = nn.Embedding(len(mine), 16)
    PartEmbedding.take(embedding, mine.start)
    embedding.weight.data = weight[mine.start : mine.stop]
    ids = torch.arange(203)
    logits = whole_logits(hidden @ part_w.detach().t(), [len(part) for part in parts], group)
    return {
        "loss": float((loss - right).abs() / right),
        "hidden": float((d_hidden - h.grad).norm() / h.grad.norm()),
        "weight": float((part_w.grad - w.grad[mine.start : mine.stop]).norm() / part_w.grad.norm()),
        "embedding": float((exchange.total(embedding(ids).detach(), group) - weight).abs().max()),
        "logits": float((logits - hidden @ weight.t()).abs().max()),
    }


def overlapped(mesh: Mesh) -> dict[str, Any]:
    """Parameters of which some get a gradient on one process alone, one on none, in small buckets."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in (3, 5, 2, 4)]
    everyone = mesh.group("data")
    sums = OverlappedSum(parameters, lambda _: everyone, size=16)
    begun = []
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = None
        sums.arm()
        loss = parameters[0].sum() * (mesh.rank + 1) + parameters[3].sum() * 10.0
        if mesh.rank == 2:
            loss = loss + parameters[1].sum()
        loss.backward()
        begun.append(sums.next)
        sums.finish()
    sums.close()
    return {
        "buckets": [[each.numel() for each in bucket.parameters] for bucket in sums.buckets],
        "begun": begun,
        "gradients": [None if each.grad is None else each.grad.tolist() for each in parameters],
    }


def wholes() -> dict[str, Any]:
    """Parts of tensors, put together on the main rank and taken apart again; one that a single process has."""
    mesh = layouts.join_for({"pipeline": 2, "tensor": 2})
    spread, whole = Spread(mesh), torch.arange(24.0).view(6, 4)
    spread.enter("rows", Cut("tensor", (6, 4), 0, ((range(2), range(4, 5)), (range(2, 4), range(5, 6)))))
    spread.enter("columns", Cut("tensor", (6, 4), 1, ((range(1),), (range(1, 4),))))
    here = {name: part_of(spread, name, whole, whole) for name in ("rows", "columns")}
    tensors = here | {f"stage {mesh.places['pipeline']}": torch.full((2,), float(mesh.places["pipeline"]))}
    gathered = gather_whole(mesh, spread, tensors, {name: name for name in here})
    return {
        "parts": {name: part.tolist() for name, part in here.items()},
        "same": {name: torch.equal(gathered[name], whole) for name in here if mesh.is_main},
        "others": {name: each.tolist() for name, each in gathered.items() if name not in here},
    }


def refused() -> str:
    """A network with a module that declares nothing."""
    from lmforge.errors import InputError
    from lmforge.model.gpt import GPT, GPTConfig
    from lmforge.parallel.mesh_layout import MeshLayout
    from lmforge.recipe.schema import Parallel

    model = GPT(GPTConfig(vocab_size=40, context=8, layers=1, d_model=16, heads=4, kv_heads=4, d_ff=16))
    model.blocks[0].more = nn.Linear(16, 16)
    try:
        MeshLayout(layouts.join_for({"tensor": 4}), Parallel(tensor=4)).apply(model)
    except InputError as error:
        dist.barrier()
        return str(error)
    return "not refused"
