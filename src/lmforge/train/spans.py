"""A language model fine-tuned to point at an answer: where it starts and ends in the text read, or that there is none.

    question, context, cue ─▶ network ─┬─ each context token h ─▶ w·h + (U last)·h / √d ─▶ start, end
                                       └─ the last token, which has read all ─▶ start and end of "no answer"

As BERT does it (Devlin et al. 2019, section 4.3), whose first token stands for no answer; here the last does, because a
token of this network has read only what stands before it. For the same reason what is looked for, U last, depends on
the last token: a context token has read the question, the last one also the rest of the context.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.train.classifier import Fit, Reader, fit_reader, groups_of, in_bfloat16, padded


@dataclasses.dataclass(frozen=True)
class Pointed:
    """A row: its tokens, where those of the context stand (`first` up to `stop`, exclusive), and the places of the
    answer's first and last token, both the row's last place where it holds none."""

    tokens: list[int]
    first: int
    stop: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of a row: the logits of each context token as first and as last of the answer, and of there being none (the sum
    of its two)."""

    starts: list[float]
    ends: list[float]
    none: float


class SpanReader(Reader):
    """A network and what points into what it read."""

    def __init__(self, model: GPT, seed: int = 1, reduced: bool = False) -> None:
        """`reduced`: whether `scores` makes the network's products in bfloat16, as training does."""
        super().__init__(model)
        self.reduced = reduced
        width = model.config.d_model
        self.places, self.none = nn.Linear(width, 2), nn.Linear(width, 2)
        self.wanted = nn.Linear(width, 2 * width, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.places, self.none):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.wanted.weight)

    def forward(self, rows: Sequence[Pointed]) -> Tensor:
        """B rows → logits (B, 2, T), fp32: of each place as first and as last; −∞ where neither context nor last."""
        device = self.places.weight.device
        tokens, lengths = (each.to(device) for each in padded([row.tokens for row in rows]))
        hidden = self.model.hidden(tokens).float()
        with torch.autocast(device.type, enabled=False):
            last = hidden[torch.arange(len(rows), device=device), lengths - 1]
            wanted = self.wanted(last).view(len(rows), 2, -1) / math.sqrt(hidden.shape[-1])
            logits = self.places(hidden).transpose(1, 2) + wanted @ hidden.transpose(1, 2)
            none: Tensor = self.none(last)
        at = torch.arange(tokens.shape[1], device=device)
        bounds = torch.tensor([[row.first, row.stop] for row in rows], device=device)
        within = (at >= bounds[:, :1]) & (at < bounds[:, 1:])
        logits = logits.masked_fill(~within[:, None], -math.inf)
        ends = (at == lengths[:, None] - 1)[:, None]
        return torch.where(ends, none[:, :, None], logits)

    def scores(self, rows: Sequence[Pointed]) -> list[Scores]:
        """Each row's logits."""
        results: dict[int, Scores] = {}
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].tokens))
        device, bar = self.places.weight.device.type, Bar("evaluate", len(rows), "windows")
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=self.reduced), bar:
            for group in groups_of(order, [len(row.tokens) for row in rows]):
                logits = self([rows[number] for number in group]).tolist()
                bar.step(len(group))
                for number, (starts, ends) in zip(group, logits, strict=True):
                    row, last = rows[number], len(rows[number].tokens) - 1
                    results[number] = Scores(
                        starts[row.first : row.stop], ends[row.first : row.stop], starts[last] + ends[last]
                    )
        return [results[number] for number in range(len(rows))]


def fit_spans(model: GPT, rows: Sequence[Pointed], fit: Fit) -> tuple[SpanReader, dict[str, float]]:
    """Train, in place; with the figures and errors of `classifier.fit_reader`. Of `fit`, `outputs`, `degree` and
    `words` say nothing here."""
    device = next(model.parameters()).device
    reader = SpanReader(model, fit.seed, in_bfloat16(fit, device)).to(device)

    def loss_of(batch: Sequence[Pointed]) -> Tensor:
        logits = reader(batch)
        right = torch.tensor([[row.start, row.end] for row in batch], device=logits.device)
        return F.cross_entropy(logits.flatten(0, 1), right.flatten())

    return reader, fit_reader(reader, rows, fit, loss_of)
