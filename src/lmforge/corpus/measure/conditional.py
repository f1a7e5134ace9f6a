"""How many bits a symbol carries once the ones before it are known: held-out cross-entropy of n-gram models of orders 1
to n.

    training documents ─┐                        ┌─▶ counts of each n-gram in the training part
                        ├─▶ one array of n-grams ┤
    held-out documents ─┘                        └─▶ p(next | history) at each held-out place ─▶ mean of -log2 p

Interpolated Kneser-Ney with three discounts an order (`lmforge.corpus.ngram` has the equations). A cross-entropy under
any model is at least the entropy of the source, so every figure is an upper bound, and falls as the training part
grows. n-grams of both parts are numbered together by sorting, so nothing is looked up and all orders come out of one
pass.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lmforge.corpus import scripts
from lmforge.corpus.ngram import KneserNey, discounts_of

SPELLING_ORDER = 6  # of the byte model that spells words
BEGIN = 0  # stands before a document, order - 1 times; is never predicted
Ids = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Conditional:
    """Bits per held-out symbol under the models of orders 1, 2, …; `trained` and `scored` count symbols, `unseen` is
    the share of the held-out ones that the training part does not hold."""

    bits: tuple[float, ...]
    trained: int
    scored: int
    unseen: float


def of_bytes(train: Sequence[bytes], held_out: Sequence[bytes], order: int) -> Conditional:
    """Bits per byte; below order 1, each of the 256 bytes is as likely as any other."""
    parts = [[np.frombuffer(text, np.uint8).astype(np.int64) + 1 for text in texts] for texts in (train, held_out)]
    scored = sum(map(len, parts[1]))
    return _orders(parts[0], parts[1], order, 257, np.full(scored, 1 / 256))


def of_words(train: Sequence[str], held_out: Sequence[str], order: int) -> Conditional:
    """Bits per word (a run of non-space characters, of a script without spaces a sign); white space is free.

    Below order 1 stands a byte model of how the training part's distinct words are spelled, each counted once. So a
    word never seen costs what it takes to say that it is new and to spell it, and the model is one of all possible
    text.
    """
    index: dict[str, int] = defaultdict(lambda: len(index) + 1)
    parts = [
        [np.fromiter(map(index.__getitem__, words), np.int64, len(words)) for words in map(scripts.words, texts)]
        for texts in (train, held_out)
    ]
    held = np.concatenate([np.zeros(0, np.int64), *parts[1]])
    # numbers are given in order, training part first
    known = int(max((ids.max() for ids in parts[0] if len(ids)), default=0))
    needed, places = np.unique(held, return_inverse=True)
    words = list(index)
    if not known:
        return Conditional((0.0,) * order, 0, len(held), 1.0)
    spelling = KneserNey.train((word.encode() for word in words[:known]), SPELLING_ORDER, modified=True)
    spelled = 2.0 ** spelling.log2_whole([words[number - 1].encode() for number in needed.tolist()])
    return _orders(parts[0], parts[1], order, len(words) + 1, spelled[places])


def _orders(train: Sequence[Ids], held_out: Sequence[Ids], order: int, symbols: int, base: Reals) -> Conditional:
    """Models of orders 1 … `order` over numbers 1 … symbols - 1; `base` (held-out symbols,) is what order 0 gives to
    each."""
    begin = np.full(order - 1, BEGIN, np.int64)
    ids = np.concatenate([begin, *(piece for text in (*train, *held_out) for piece in (begin, text))])
    split = len(begin) + sum(len(text) + order - 1 for text in train)
    predicted = ids != BEGIN
    scored = np.flatnonzero(predicted[split:]) + split
    trained = int(np.count_nonzero(predicted[:split]))
    if not trained or not len(scored):
        return Conditional((0.0,) * order, trained, len(scored), 1.0 if len(scored) else 0.0)
    bits: list[float] = []
    below, unseen = base, 1.0
    grams, first = _numbered(ids)
    histories, of_gram = np.zeros(len(ids), np.int64), np.zeros(len(first), np.int64)
    for length in range(1, order + 1):
        counts = np.bincount(grams[:split][predicted[:split]], minlength=len(first))
        probability = _interpolated(counts, of_gram, grams[scored], histories[scored], below)
        bits.append(float(-np.log2(probability).mean()))
        if length == 1:
            unseen = float((counts[grams[scored]] == 0).mean())
        if length == order:
            break
        longer, start = _numbered(np.concatenate(([0], grams[:-1])) * symbols + ids)
        new = start[(start < split) & predicted[start]]  # one place of each distinct longer n-gram of the training part
        continuations = np.bincount(grams[new], minlength=len(first))
        below = _interpolated(continuations, of_gram, grams[scored], histories[scored], below)
        histories = np.concatenate(([0], grams[:-1]))
        grams, first, of_gram = longer, start, histories[start]
    return Conditional(tuple(bits), trained, len(scored), unseen)


def _numbered(keys: Ids) -> tuple[Ids, Ids]:
    """For each key (N,) the number of its value among the distinct ones (G), and the first place of each value (G,)."""
    width = max(1, int(len(keys) - 1).bit_length())
    # value and place in one word: sorting these is 3 times as fast as an indirect sort
    if int(keys.max()) >> 62 - width == 0:
        packed = np.sort(keys << width | np.arange(len(keys)))
        values, places = packed >> width, packed & (1 << width) - 1
    else:
        places = np.argsort(keys, kind="stable")
        values = keys[places]
    new = np.ones(len(keys), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    numbers = np.empty(len(keys), np.int64)
    numbers[places] = np.cumsum(new) - 1
    return numbers, places[new]


def _interpolated(counts: Ids, of_gram: Ids, gram: Ids, history: Ids, below: Reals) -> Reals:
    """max(c - D, 0) / c(h) + λ(h) p_below at each scored place: `counts` and histories `of_gram` by n-gram, the others
    by place."""
    size = int(max(of_gram.max(), history.max())) + 1
    subtracted = np.array((0.0, *discounts_of(counts[counts > 0], modified=True)))[np.minimum(counts, 3)]
    totals = np.bincount(of_gram, counts, minlength=size)
    kept = np.bincount(of_gram, subtracted, minlength=size)
    total = totals[history]
    known = total > 0
    total[~known] = 1
    return (
        np.where(known, (counts - subtracted)[gram], 0.0) / total + np.where(known, kept[history] / total, 1.0) * below
    )
