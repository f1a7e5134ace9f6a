"""A network with room for weights that are about to be read, and nothing in it."""

from __future__ import annotations

import torch

from lmforge.model.gpt import GPT, GPTConfig
from lmforge.model.rope import rotations


def with_room(config: GPTConfig) -> GPT:
    """A network whose parameters, and the buffers that are saved with it, have room but no values yet.

    Making a network draws values for all of it; where they are to be overwritten that takes longer than reading.
    """
    with torch.device("meta"):
        model = GPT(config)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"))
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
    if config.tied and model.head is not None and model.embed is not None:
        model.head.weight = model.embed.weight
    model.rotations = rotations(config, config.positions_used)
    if model.local_rotations is not None:
        model.local_rotations = rotations(config, config.positions_used, local=True)
    return model
