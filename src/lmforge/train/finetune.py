"""What is different where training goes on from another model: its first weights, what of them is trained, and on what
it is judged."""

from __future__ import annotations

import torch
from torch import Tensor

from lmforge.errors import InputError
from lmforge.formats.native import load_model, model_tensors
from lmforge.model.gpt import GPT
from lmforge.recipe import Finetune
from lmforge.tokens.images import scaled
from lmforge.tokens.loader import Loader, whole_tokens
from lmforge.tokens.shards import Shards
from lmforge.train.adapters import adapt


def start_from(model: GPT, settings: Finetune, seed: int) -> None:
    """Fill a network with the weights of `settings.base`; with `settings.lora` they are frozen and get adapters.

    Raises:
        InputError: no model there, an altered one, or one of another shape (names the first tensor).
    """
    weights = model_tensors(load_model(settings.base))
    own = model_tensors(model)
    for name in sorted(own.keys() | weights.keys()):
        here, there = (tuple(each[name].shape) if name in each else "not there" for each in (own, weights))
        if here != there:
            raise InputError(
                f"finetune.base: {settings.base}: {name} is {there}, and {here} in the network of [model]; leave "
                "[model] out"
            )
    model.load_state_dict({**weights, **({} if "head.weight" in weights else {"head.weight": weights["embed.weight"]})})
    if settings.lora:
        adapt(model, settings.lora, seed)


def example_rows(shards: Shards, context: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Validation rows of whole examples: inputs, targets (−1 where a token does not count in training; an answer's end
    does) and documents, each (R, context), and images (N,C,S,S) where there are any; R = tokens/context or as many as
    there are.

    Raises:
        InputError: every example is longer than a row.
    """
    rows = max(1, min(whole_tokens(shards, context) // context, tokens // context))
    batch = Loader(shards, context, rows, seed, "whole").batch(0)
    assert batch.documents is not None
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    images = None if batch.images is None else torch.from_numpy(scaled(batch.images))
    return inputs, targets, torch.from_numpy(batch.documents), images
