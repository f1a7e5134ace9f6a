"""What a network makes of an image by itself: one vector, by which classes can be told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from lmforge.model.gpt import GPT
from lmforge.model.vision import PATCH


def patches_of(model: GPT) -> int:
    """Tokens of one image."""
    return (model.config.image_size // model.config.image_patch) ** 2


def image_features(model: GPT, images: Tensor, begin: int) -> Tensor:
    """Images (N,C,S,S) from −1 to 1 → (N,patches·D): the last layer's states at its patches side by side, so that what
    stands where is kept; each image in a row of its own behind the token `begin`."""
    row = torch.tensor([begin, *[PATCH] * patches_of(model)], device=images.device)
    return model.hidden(row.expand(len(images), -1), images=images)[:, 1:].flatten(1)
