"""−ln p of every token of a document, by overlapping windows.

    document ─▶ [end of text, tokens …] ─▶ half-overlapping windows ─▶ each token's −ln p once

What each token is predicted from: the first window of a document predicts all its tokens, each later one only what the
one before did not reach. With windows of C tokens, the k-th token of a document (k = 1, 2, …) sees all k tokens before
it (the end-of-text token that begins every document is the first of them) as long as k ≤ C, and between C/2 and C of
them after that. Documents never see each other. The end-of-text token is given, never predicted: neither its bits nor
any byte for it count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lmforge.errors import InputError
from lmforge.evaluate.documents import Array, Reals, TokenReader
from lmforge.evaluate.task import SEED, device_of
from lmforge.generate.score import token_nats
from lmforge.model.gpt import GPT
from lmforge.progress import Bar
from lmforge.tokens.bpe import Tokenizer
from lmforge.tokens.shards import TOKENIZER, Shards

# rows × width of one forward pass: what stays in a core's cache, what fills a GPU
BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
QUICK_CONTEXTS = 8  # a bounded sample takes at most this many contexts of a document


@dataclasses.dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a document are read; tokens [scored, stop] are predicted (token i from those before
    it)."""

    document: int
    start: int
    scored: int
    stop: int

    @property
    def width(self) -> int:
        """Tokens read, at most a context."""
        return self.stop - self.start


def plan_windows(document: int, tokens: int, context: int) -> Iterator[Window]:
    """Windows that predict tokens 1 … tokens−1 of a document once each; token 0 is its end-of-text token."""
    last = tokens - 1
    if last < 1:
        return
    stop = min(context, last)
    yield Window(document, 0, 1, stop)
    while stop < last:
        scored = stop + 1
        stop = min(stop + context // 2, last)
        yield Window(document, max(0, stop - context), scored, stop)


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Every predicted token of some documents, document by document, all (N,): which document (its place in the table
    given), its place in the document (0 is the first after the end-of-text token), its id, −ln p in nats, and how many
    tokens it was predicted from.
    """

    document: Array
    position: Array
    token: Array
    nats: Reals
    seen: Array

    def bits_of_documents(self, documents: int) -> Reals:
        """Bits of each of the first `documents` documents."""
        return np.bincount(self.document, self.nats, documents) / math.log(2)

    def clean_bits_of_documents(self, sizes: Array, leaked: Sequence[NDArray[np.bool_]]) -> Reals:
        """Bits of each document's bytes that are not `leaked` (one mask of its bytes a document); `sizes` (V,) are the
        bytes of each token. A token's bits are spread evenly over its bytes; one without bytes counts with those before
        it."""
        widths = sizes[self.token]
        first = np.searchsorted(self.document, np.arange(len(leaked)))
        total = np.concatenate(([0], np.cumsum(widths)))
        stop = total[1:] - total[first][self.document]
        start = stop - widths
        share = np.ones(len(widths))
        for number, mask in enumerate(leaked):
            mine = slice(*np.searchsorted(self.document, [number, number + 1]))
            clean = np.concatenate(([0], np.cumsum(~mask)))
            begin, end = (np.minimum(each[mine], len(mask)) for each in (start, stop))
            # the byte before stands for a token without bytes, at the beginning the byte after
            begin = np.where(begin == end, np.maximum(begin - 1, 0), begin)
            end = np.where(begin == end, np.minimum(end + 1, len(mask)), end)
            share[mine] = (clean[end] - clean[begin]) / np.maximum(end - begin, 1)
        return np.bincount(self.document, self.nats * share, len(leaked)) / math.log(2)


def score_documents(
    model: GPT, shards: TokenReader, table: Array, context: int, batch_tokens: int | None = None
) -> TokenScores:
    """Score the documents of `table` (D, 2 or more): first token in `shards`, number of tokens. Windows are at most
    `context` long.

    Windows of like width go through the network together. Padding stands on the right and attention is causal, so no
    scored token sees it, and a document's score depends neither on its neighbours nor on `batch_tokens`.
    """
    device = device_of(model)
    counts = np.maximum(table[:, 1] - 1, 0)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    document = np.repeat(np.arange(len(table)), counts)
    position = np.arange(offsets[-1]) - offsets[document]
    token, seen = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.int64)
    nats = np.full(offsets[-1], np.nan)
    plan = [window for index, row in enumerate(table) for window in plan_windows(index, int(row[1]), context)]
    plan.sort(key=lambda window: -window.width)  # the widest first: what does not fit in memory fails at once
    with Bar("evaluate", float(offsets[-1]), "tok") as bar:
        for group in _batches(plan, batch_tokens or BATCH_TOKENS[device.type]):
            inputs = np.zeros((len(group), group[0].width), np.int64)
            targets = np.full(inputs.shape, -1, np.int64)
            for row, window in enumerate(group):
                ids = shards.read(int(table[window.document, 0]) + window.start, window.width + 1)
                inputs[row, : window.width] = ids[:-1]
                targets[row, window.scored - 1 - window.start : window.width] = ids[window.scored - window.start :]
            read = (
                token_nats(model, torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device))
                .cpu()
                .numpy()
            )
            for row, window in enumerate(group):
                first = window.scored - 1 - window.start
                place = slice(offsets[window.document] + window.scored - 1, offsets[window.document] + window.stop)
                token[place], nats[place] = targets[row, first : window.width], read[row, first : window.width]
                seen[place] = np.arange(first, window.width) + 1
                bar.step(window.width - first)
    return TokenScores(document, position, token, nats, seen)


def _batches(plan: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows in the order given (widest first), together as long as rows × width stays within `batch_tokens`."""
    group: list[Window] = []
    for window in plan:
        if group and (len(group) + 1) * group[0].width > batch_tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def token_sizes(tokenizer: Tokenizer) -> Array:
    """Bytes that each token of the vocabulary stands for: (V,)."""
    return np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])


def quick_bits_per_byte(model: GPT, tokens_dir: Path, split: str, context: int, max_tokens: int) -> float:
    """Bits per byte on at most `max_tokens` tokens of a split: documents in a fixed shuffled order, of each at most its
    first 8 contexts. The same sample for every model; the same scoring as the task `bits_per_byte`, but that tokens
    which the loss leaves out (questions, instructions) are read and not scored, as in training.

    Raises:
        InputError: no token of the sample counts.
    """
    shards = Shards.open(tokens_dir, split)
    table = shards.documents[np.random.default_rng(SEED).permutation(len(shards.documents))].copy()
    table[:, 1] = np.minimum(table[:, 1], QUICK_CONTEXTS * context + 1)
    left = max_tokens - np.concatenate(([0], np.cumsum(table[:, 1])[:-1]))
    table[:, 1] = np.minimum(table[:, 1], left)
    table = table[table[:, 1] > 1]
    scores = score_documents(model, shards, table, context)
    counted = [shards.counts(int(start) + 1, int(tokens) - 1) for start, tokens in table[:, :2]]
    counts = np.concatenate([np.empty(0, dtype=bool), *counted])
    if shards.masked and not counts.any():
        raise InputError(f"{tokens_dir}: no token of the {split} split's sample counts in the loss; add examples to it")
    sizes = token_sizes(Tokenizer.load(tokens_dir / TOKENIZER))
    return float(scores.nats[counts].sum() / math.log(2) / max(1, sizes[scores.token[counts]].sum()))
