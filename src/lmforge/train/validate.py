"""Validation: the same rows each time, in bits per byte of their text."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmforge.model.gpt import GPT
from lmforge.parallel.layout import Layout
from lmforge.tokens.images import PATCH
from lmforge.tokens.shards import Shards
from lmforge.train.objective import OBJECTIVES, Objective
from lmforge.train.precision import autocast
from lmforge.train.statistics import Activations

ROWS_AT_ONCE = 16


class Rows(NamedTuple):
    """Text to predict, each (R, context): inputs, targets (−1 where a token does not count) and, where a row packs
    several texts, the number of each token's text in it."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None
    images: Tensor | None = None  # (N,C,S,S), of all rows in the order of reading

    def images_of(self, piece: slice) -> Tensor | None:
        """Those of some rows."""
        if self.images is None:
            return None
        marks = (self.inputs == PATCH).sum(1)
        patches = max(1, int(marks.sum()) // max(1, len(self.images)))
        before = [0, *(marks.cumsum(0) // patches).tolist()]
        return self.images[before[piece.start] : before[piece.stop]]

    def text_bytes(self, token_bytes: NDArray[np.int64]) -> int:
        """UTF-8 bytes of the text that is predicted, with the bytes of each token."""
        return int(token_bytes[self.targets[self.targets >= 0].numpy()].sum())


class Validator:
    """Scores a network on fixed rows, as the layout runs it."""

    def __init__(
        self,
        layout: Layout,
        model: GPT,
        rows: Rows,
        text_bytes: int,
        precision: str,
        objective: Objective = OBJECTIVES["text"],
    ) -> None:
        self.layout, self.model, self.rows, self.objective = layout, model, rows, objective
        self.text_bytes, self.precision = text_bytes, precision

    def bits_per_byte(self) -> tuple[float, dict[str, dict[str, float]]]:
        """(bits per byte of the rows' text, sizes of activations by layer)."""
        with Activations(self.model) as activations:
            bits = float(self.nats().double().sum()) / math.log(2) / max(1, self.text_bytes)
        return bits, activations.by_layer

    def nats(self, rows: Rows | None = None) -> Tensor:
        """−ln p of each token of the rows (or of others) under the weights as they are, (R, context); 0 where a token
        does not count."""
        rows = rows or self.rows
        inputs, targets, documents, _ = rows
        device = self.layout.device

        def work(network: nn.Module, share: range) -> list[Tensor]:
            nats = []
            with autocast(self.precision, device):
                for first in range(share.start, share.stop, ROWS_AT_ONCE):
                    piece = slice(first, min(first + ROWS_AT_ONCE, share.stop))
                    packed = None if documents is None else documents[piece].to(device)
                    tokens, wanted = inputs[piece].to(device), targets[piece].to(device)
                    images = rows.images_of(piece)
                    seen = None if images is None else images.to(device)
                    nats.append(self.objective.nats(network, tokens, wanted, packed, seen).cpu())  # type: ignore[arg-type]
            return nats

        return torch.cat([piece for part in self.layout.forward(work, range(len(inputs))) for piece in part])


def validation_rows(shards: Shards, context: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows (R, context) spread evenly over the validation split, with targets; R = tokens/context or as many as there
    are."""
    available = (shards.tokens - 1) // context
    rows = max(1, min(available, tokens // context))
    starts = [row * available // rows * context for row in range(rows)]
    stacked = torch.from_numpy(np.stack([shards.read(start, context + 1) for start in starts]))
    targets = stacked[:, 1:].clone()
    for row, start in enumerate(starts):  # which document comes next is not language
        targets[row, shards.document_starts(start + 1, start + context + 1) - start - 1] = -1
    if shards.masked:
        targets[~torch.from_numpy(np.stack([shards.counts(start + 1, context) for start in starts]))] = -1
    return stacked[:, :-1].contiguous(), targets
