"""Sharding acts as one process does (test_mesh_layout.py); here, what is sharded and how it is let go."""

from __future__ import annotations

from typing import Any

import torch
from bench.quality import layouts
from bench.ranks import on_ranks

from lmforge.parallel.shard import sharded_modules
from lmforge.parallel.shares import is_shared, local


def one_in_a_group_of_one(_: str) -> dict[str, Any]:
    import torch.distributed as dist

    from lmforge.parallel.mesh import Mesh
    from lmforge.parallel.shard import apply_shard
    from lmforge.recipe.schema import Parallel

    dist.init_process_group("gloo", rank=0, world_size=1)
    run = layouts.Run(layouts.Case("one", {}, "ahead", more={"layout": "mesh"}), Mesh(0, 1, torch.device("cpu")))
    apply_shard(run.model, run.layout.mesh, Parallel(gather="bf16"))
    modules = sharded_modules(run.model)
    shared = all(is_shared(parameter) for parameter in run.model.parameters())
    with torch.no_grad():
        run.model.hidden(torch.zeros(1, 32, dtype=torch.long))
    kinds = {str(local(run.model.norm.weight).dtype)}
    for module in modules:
        module.reshard()
    return {"modules": len(modules), "shared": shared, "kinds": kinds | {str(local(run.model.norm.weight).dtype)}}


def test_each_block_is_gathered_by_itself_and_travels_in_bfloat16() -> None:
    (found,) = on_ranks(1, one_in_a_group_of_one, "")
    assert found["modules"] == 4 + 1 + 1  # blocks, the one that looks ahead, and the rest
    assert found["shared"]
    assert found["kinds"] == {"torch.bfloat16", "torch.float32"}
