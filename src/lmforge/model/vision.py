"""Images among the tokens: each image is cut into patches, and each patch takes the place of one token.

A token id below 0 marks a patch: the patches of the images given, in their order, go to the marks in the order of
reading. The network predicts text only: targets are −1 at patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig
from lmforge.tokens.images import PATCH

__all__ = ["PATCH", "PatchEmbedding", "place_patches"]


class PatchEmbedding(nn.Module):
    """Patch → vector: a linear map of its pixels, plus learned vectors of its row and its column (Dosovitskiy et al.
    2020, section 3.1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.size, self.patch, self.channels = config.image_size, config.image_patch, config.image_channels
        side = self.size // self.patch
        self.pixels = nn.Linear(self.channels * self.patch**2, config.d_model)
        self.row = nn.Parameter(torch.zeros(side, 1, config.d_model))
        self.column = nn.Parameter(torch.zeros(1, side, config.d_model))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N,C,S,S) → (N·(S/patch)²,D), rows of patches from the top.

        Raises:
            InputError: images of another size.
        """
        if images.shape[1:] != (self.channels, self.size, self.size):
            wanted = (self.channels, self.size, self.size)
            raise InputError(f"images {tuple(images.shape[1:])}: this network takes {wanted} (channels, height, width)")
        # (N,C,rows,columns,patch,patch)
        patches = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
        placed: Tensor = self.pixels(patches.permute(0, 2, 3, 1, 4, 5).flatten(3)) + self.row + self.column
        return placed.flatten(0, 2)


def place_patches(x: Tensor, tokens: Tensor, patches: Tensor) -> Tensor:
    """Embedded tokens x (B,T,D) with the patches (P,D) at the marks of tokens (B,T).

    Raises:
        InputError: not as many marks as patches.
    """
    marks = tokens < 0
    if int(marks.sum()) != len(patches):
        raise InputError(
            f"{int(marks.sum())} tokens are marked as patches, and the images have {len(patches)}; mark each with "
            f"{PATCH}"
        )
    return x.masked_scatter(marks.unsqueeze(-1), patches.to(x.dtype))
