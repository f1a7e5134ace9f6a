"""A network with room for weights that are about to be read, and nothing in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmforge.model.gpt import GPT, GPTConfig

DRAWN = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_}


class _NothingIsDrawn(TorchFunctionMode):
    """Random values of new parameters are left out. (A network on the device "meta" would do, but drawing there imports
    the whole of torch's decompositions, which takes seconds.)"""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What the library calls in the place of `func`."""
        return (args[0] if args else (kwargs or {})["tensor"]) if func in DRAWN else func(*args, **kwargs or {})


def with_room(config: GPTConfig) -> GPT:
    """A network whose matrices have room but no values yet.

    Making a network draws values for all of it; where they are to be overwritten that takes longer than reading, and
    memory before it is needed.
    """
    with _NothingIsDrawn():
        return GPT(config)
