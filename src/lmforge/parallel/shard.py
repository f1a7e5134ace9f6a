"""Weights, gradients and optimizer state shared between processes, each of which has rows of its own.

    forward, backward of a block:  weights gathered from all ─▶ used ─▶ let go; gradients ─▶ summed, each keeps its part

The engine is torch's `fully_shard` (Zhao et al. 2023, "PyTorch FSDP"; ZeRO stage 3 of Rajbhandari et al. 2020), block
by block. With a data axis beside it (hybrid sharding), the parts' gradients are then summed over the copies.

In a pipeline each process shards its own layers. Passes of many micro-batches cross there, so weights are gathered once
a step, and gradients summed when the schedule is through (`begin_passes`, `end_passes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmforge.model.gpt import GPT
from lmforge.parallel.mesh import Mesh
from lmforge.recipe.schema import Parallel

if TYPE_CHECKING:  # it takes a second and more to import, which a run that does not shard need not wait for
    from torch.distributed.fsdp import FSDPModule

SHARD_AXES = ("data", "shard")  # over which gradients are summed by what is here


def apply_shard(model: GPT, mesh: Mesh, settings: Parallel) -> None:
    """Shard the network in place; its parameters become DTensors, cut along their first dimension."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    over = mesh.device_mesh[SHARD_AXES if mesh.sizes["data"] > 1 else ("shard",)]
    kind = torch.bfloat16 if settings.gather == "bf16" else None
    policy = MixedPrecisionPolicy(kind, torch.float32 if kind else None, cast_forward_inputs=False)
    reshard = settings.reshard and mesh.sizes["pipeline"] == 1
    for block in (*model.blocks, *model.ahead):
        fully_shard(block, mesh=over, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(model, mesh=over, reshard_after_forward=False, mp_policy=policy)  # the head is used after `hidden`
    for module in sharded_modules(model):
        module.set_gradient_divide_factor(1.0)  # losses are divided by the tokens of all processes already
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(model.config.has_experts)  # an expert may get tokens elsewhere alone
    if mesh.sizes["pipeline"] > 1:
        model.run_inside = _run  # type: ignore[assignment]
        register_fsdp_forward_method(model, "run_inside")
        return
    for method in ("loss", "hidden"):
        register_fsdp_forward_method(model, method)


def _run(work: Callable[..., Any], *given: Any) -> Any:
    return work(*given)


def inside(model: nn.Module, work: Callable[..., Tensor], *given: Any) -> Tensor:
    """work(*given), which uses some of the layers of a network: as a pass of that network, where it is sharded."""
    run: Any = getattr(model, "run_inside", _run)
    result: Tensor = run(work, *given)
    return result


def begin_passes(model: Any) -> None:
    """Passes begin that cross each other: weights stay when they are gathered, gradients are not summed."""
    if sharded_modules(model):
        model.set_is_last_backward(False)
        model.set_requires_gradient_sync(False)
        model.set_reshard_after_backward(False)


def end_passes(model: Any) -> None:
    """All of them are through: sum the gradients and let the weights go, as after the last pass of a network. That
    last pass is an empty one."""
    if sharded_modules(model):
        model.set_is_last_backward(True)
        model.set_requires_gradient_sync(True)
        model.set_reshard_after_backward(True)
        nothing = torch.zeros((), device=next(model.parameters()).device, requires_grad=True)
        inside(model, lambda x: x * 1, nothing).backward()


def let_go(model: nn.Module) -> None:
    """Of weights that are gathered, keep this process's part only."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """The modules whose weights are gathered together."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
