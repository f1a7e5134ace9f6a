"""Whether code may read a module's weights without calling it."""

from __future__ import annotations

from torch import Tensor, nn


def weights_may_be_read(*modules: nn.Module) -> bool:
    """Whether a module, with all in it, is no more than its plain tensors: no hook of its own follows it (FSDP gathers
    weights in one, and lets them go in another), and no weight is spread over devices (DTensor). Where this is so, a
    fast path may read weights; elsewhere modules have to be called."""
    for module in modules:
        for part in module.modules():
            if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
                return False
            for parameter in part._parameters.values():
                if parameter is not None and type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
                    return False
    return True
