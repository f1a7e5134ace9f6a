"""Images among the tokens: each image is cut into patches, and each patch takes the place of one token.

A token id below 0 marks a patch: the patches of the images given, in their order, go to the marks in the order of
reading. The network predicts text only: targets are −1 at patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.errors import InputError
from lmforge.model.config import GPTConfig
from lmforge.tokens.images import PATCH

__all__ = ["PATCH", "PatchEmbedding", "place_patches"]


class ConvolutionStem(nn.Module):
    """Image → a vector for each patch, by convolutions over the whole image, each of which halves it, so that a patch
    begins with what lies around it (Xiao et al. 2021, "Early convolutions help transformers see better", section 4).

    Each is 3 × 3, normalised over the image and rectified; the first halves by its stride, later ones by the largest of
    2 × 2, as in Snell et al. 2017, section 3.1. Their width is half the network's.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, halvings = config.d_model // 2, config.image_patch.bit_length() - 1
        channels = [config.image_channels, *[width] * (halvings - 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(entering, width, 3, 1 if number else 2, 1) for number, entering in enumerate(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in channels)
        self.out = nn.Linear(width, config.d_model)

    def forward(self, images: Tensor) -> Tensor:
        """(N,C,S,S) → (N,S/patch,S/patch,D)."""
        x = images
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            x = F.max_pool2d(x, 2) if number else x
        result: Tensor = self.out(x.permute(0, 2, 3, 1))
        return result


class PatchEmbedding(nn.Module):
    """Patch → vector: a linear map of its pixels (Dosovitskiy et al. 2020, section 3.1) or convolutions, plus learned
    vectors of its row and its column."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.size, self.patch, self.channels = config.image_size, config.image_patch, config.image_channels
        side, convolved = self.size // self.patch, config.image_stem == "convolutions"
        self.pixels = None if convolved else nn.Linear(self.channels * self.patch**2, config.d_model)
        self.stem = ConvolutionStem(config) if convolved else None
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
        if self.pixels is None:
            assert self.stem is not None
            seen = self.stem(images)
        else:
            # (N,C,rows,columns,patch,patch)
            patches = images.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)
            seen = self.pixels(patches.permute(0, 2, 3, 1, 4, 5).flatten(3))
        placed: Tensor = seen + self.row + self.column
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
